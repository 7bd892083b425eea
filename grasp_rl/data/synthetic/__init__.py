"""Drawn overhead scenes with exact masks, as a dataset without a download."""
