"""One file per architecture. A file placed here is found by the registry without being listed anywhere."""
