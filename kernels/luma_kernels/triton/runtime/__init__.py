"""Tables, plans, launches and sums: what all kernels share."""
