"""Opening, loading and verifying checkpoints."""
