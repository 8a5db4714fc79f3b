"""Hands out the files of the page; every view is the same document, which reads its address."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

from fastapi import APIRouter, Request, Response

from luma_server.http.problems import ApiError
from luma_server.http.transfer import cache_headers, is_known, not_modified

VIEWS: Final = ("/runs", "/runs/{run}", "/runs/{run}/{step}", "/compare", "/jobs")
"""Addresses of views: they can be shared, and are read by the page's script."""

POLICY: Final = (
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'"
)
"""What a browser may do for the page: nothing inline, and nothing from elsewhere."""

_HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_DOCUMENT: Final = "index.html"
_MEDIA_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_METHODS: Final = ["GET", "HEAD"]

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class Asset:
    """One file of the page.

    Attributes:
        body: its content.
        etag: names the content.
        media_type: what it is.
    """

    body: bytes
    etag: str
    media_type: str


@lru_cache(maxsize=1)
def assets() -> dict[str, Asset]:
    """Return the files of the page by their path below ``/page/``."""
    return dict(_found(files("luma_server.page") / "static", ""))


def _found(folder: Traversable, prefix: str) -> list[tuple[str, Asset]]:
    found: list[tuple[str, Asset]] = []
    for entry in folder.iterdir():
        media_type = _MEDIA_TYPES.get(entry.name.rpartition(".")[2])
        if entry.is_dir():
            found += _found(entry, f"{prefix}{entry.name}/")
        elif media_type is not None:
            body = entry.read_bytes()
            etag = f'"{hashlib.sha256(body).hexdigest()}"'
            found.append((prefix + entry.name, Asset(body, etag, media_type)))
    return found


def _answer(request: Request, asset: Asset) -> Response:
    if is_known(request, asset.etag):
        return not_modified(asset.etag)
    headers = {**cache_headers(asset.etag), **_HEADERS}
    return Response(asset.body, media_type=asset.media_type, headers=headers)


@router.api_route("/", methods=_METHODS)
async def get_start() -> Response:
    """Lead to the first view."""
    return Response(status_code=307, headers={"Location": VIEWS[0], "Cache-Control": "no-cache"})


async def get_view(request: Request) -> Response:
    """Answer with the document."""
    return _answer(request, assets()[_DOCUMENT])


for _view in VIEWS:
    router.add_api_route(_view, get_view, methods=_METHODS)


@router.api_route("/page/{path:path}", methods=_METHODS)
async def get_asset(request: Request, path: str) -> Response:
    """Answer with a script, a style sheet or a picture.

    Raises:
        ApiError: there is no such file.
    """
    asset = assets().get(path)
    if asset is None or path == _DOCUMENT:
        raise ApiError("not_found", f"the page has no file {path[:200]!r}.")
    return _answer(request, asset)
