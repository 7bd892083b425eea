"""The arithmetic of group-relative policy optimisation: advantages and losses. Tensors in, tensors out."""
