"""The step of all tensors of a device: which rules have kernels, and what launches them."""
