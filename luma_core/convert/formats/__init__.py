"""The formats of optimizer state: one file for each, a source, a sink, or both."""
