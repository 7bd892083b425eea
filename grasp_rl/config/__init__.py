"""The configuration tree, its errors and the classes that it may name."""
