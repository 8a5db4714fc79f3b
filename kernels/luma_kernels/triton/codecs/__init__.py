"""Codecs as device functions, and how kernels name them."""
