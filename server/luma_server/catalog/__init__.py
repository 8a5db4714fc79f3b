"""The checkpoints under the root: which there are, and what is known of each."""
