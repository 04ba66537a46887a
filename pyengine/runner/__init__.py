"""The runner: turns a StepInput into token ids on a device. Knows tensors, not policy; never looks at a Sequence."""
