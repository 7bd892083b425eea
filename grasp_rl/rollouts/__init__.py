"""Rollouts: completions, their parsing, segmentation and reward."""
