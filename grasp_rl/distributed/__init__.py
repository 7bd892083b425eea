"""Engines: where an optimizer step runs, and how its state is divided among processes."""
