"""The tiny policy that runs on a CPU, and its weights."""
