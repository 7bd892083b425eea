"""Reward terms: small dataclasses whose raw value is finite and in [0, 1]; a rubric weighs and adds them.

Boxes and points are in original-image pixels. Two shapes of a term that compares a distance d with a tolerance f, both
as fractions of the image's longer side: ``threshold`` is 1 where d < f, as published; ``soft`` is exp(-d / f), which
still tells bad from worse.
"""
