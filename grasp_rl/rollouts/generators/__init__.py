"""Where completions come from: the policy itself, in this process, or an inference server."""
