"""Answers about images outside a dataset: the predictor, and the config of a run or the defaults to predict with."""
