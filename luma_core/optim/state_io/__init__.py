"""What saved state is, whatever it comes from, and how it is matched with an optimizer."""
