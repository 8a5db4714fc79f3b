"""The one place that states the version; a plain literal, so builds read it without torch."""

__version__ = "0.1.0"
