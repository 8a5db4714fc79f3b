"""What the commands that talk to a server share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from luma_client.client import Client
    from luma_client.location import Location

CheckpointArgument = Annotated[
    str,
    typer.Argument(
        metavar="URL", help="luma://HOST[:PORT]/RUN/STEP of the checkpoint.", show_default=False
    ),
]


def location_of(url: str) -> Location:
    """Return the place that a URL names; ``http://`` and ``https://`` are taken as well.

    Raises:
        ConfigurationError: it is no URL of a place on a server.
        UnsafeNameError: a part of it is not a safe name.
    """
    from luma_client.location import Location

    scheme, separator, rest = url.partition("://")
    ours = {"http": "luma+http", "https": "luma"}.get(scheme.lower(), scheme)
    return Location.parse(f"{ours}{separator}{rest}")


def client_of(location: Location, *, token: str | None = None) -> Client:
    """Return a client of the server that a place is on."""
    from luma_client.client import Client

    return Client(location.base_url, token=token)
