"""The page: files that a browser turns into views of what the API tells."""

from luma_server.page.routes import router

__all__ = ["router"]
