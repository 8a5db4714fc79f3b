"""What is in a checkpoint: the manifest, shards, chunks, differences and names."""
