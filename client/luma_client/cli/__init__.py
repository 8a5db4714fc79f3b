"""The ``luma`` command line; `main` is the console script.

Importing this package, and ``luma --help``, load neither torch nor any other heavy package: every
command imports what it needs when it runs.
"""

from luma_client.cli.app import main

__all__ = ["main"]
