"""Scoring a policy on a split."""
