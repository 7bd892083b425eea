"""Token generation: prefill, key-value caches, decoding."""
