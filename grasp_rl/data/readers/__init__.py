"""Dataset readers: one file a dataset."""
