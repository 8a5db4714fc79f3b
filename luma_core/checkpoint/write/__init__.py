"""Writing checkpoints, by one process or by many."""
