"""The scheduler: pure Python and numpy, no torch. It decides; the runner obeys."""
