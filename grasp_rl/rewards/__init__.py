"""Reward variants: a file and a YAML each, built from the pure terms of :mod:`grasp_rl.rewards.terms`."""
