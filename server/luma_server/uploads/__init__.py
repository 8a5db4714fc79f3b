"""Checkpoints on their way to the server: sessions, the bytes they hold, and how they end."""
