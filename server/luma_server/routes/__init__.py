"""The HTTP interface, version 1."""

from luma_server.routes.v1 import router

__all__ = ["router"]
