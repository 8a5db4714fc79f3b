"""Fused steps as Triton kernels. Importing this package does not import Triton."""
