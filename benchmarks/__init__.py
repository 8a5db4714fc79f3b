"""Measurements against peers; run as ``python -m benchmarks.<name>`` from the repository's root."""
