"""What is a rule's own: its options, its buckets and its launches."""
