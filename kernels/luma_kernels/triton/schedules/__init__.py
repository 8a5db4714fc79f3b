"""Kernels by how a step goes over memory, and their launches."""
