"""Benchmarks: what a training step costs here and elsewhere, on the same model, prompt, image and reward."""
