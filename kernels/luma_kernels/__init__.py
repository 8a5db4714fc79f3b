"""Fast paths of the update rules: Triton and native CPU."""
