"""Host time of a step, without a model or a device."""
