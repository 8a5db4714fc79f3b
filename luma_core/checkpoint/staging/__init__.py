"""What an asynchronous save reads: live state under copy-on-write, and copies of it."""
