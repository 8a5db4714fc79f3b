"""A small HTTP service over a folder of checkpoints: what is there, and what is inside."""

from luma_server.app import create_app
from luma_server.run import serve
from luma_server.settings import Settings

__all__ = ["Settings", "create_app", "serve"]
