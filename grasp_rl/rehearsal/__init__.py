"""Recipes run in small: their own code with models of a few hundred thousand parameters and drawn datasets."""
