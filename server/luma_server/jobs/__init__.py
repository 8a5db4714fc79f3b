"""Conversions behind the answer."""
