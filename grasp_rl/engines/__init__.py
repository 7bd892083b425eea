"""Engines: where the optimizer step runs. The loop of train.py is the same for all of them."""
