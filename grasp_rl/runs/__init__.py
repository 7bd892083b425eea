"""The run directory: its files, checkpoints, lock and status."""
