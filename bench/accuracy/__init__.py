"""What a choice costs in accuracy, not in time."""
