"""How long it takes from starting the process to the first token."""
