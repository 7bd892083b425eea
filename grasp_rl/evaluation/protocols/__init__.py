"""Evaluation protocols: what counts as what. A file where a metric is new, else a YAML alone."""
