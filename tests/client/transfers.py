"""Checkpoints to be sent, and a network that is looked at."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
import torch

from luma_client import Client, Retries
from luma_core import LUMA, checkpoint
from luma_core.checkpoint.storage.local import LocalStore


def saved(folder: Path, seed: int = 0, *, rows: int = 32, model: bool = False) -> LocalStore:
    """Save a checkpoint of several files, most of them of several parts."""
    torch.manual_seed(seed)
    layers = torch.nn.ModuleDict({name: torch.nn.Linear(rows, 32) for name in ("a", "b", "c")})
    optimizer = LUMA(layers.named_parameters(), seed=seed)
    for param in layers.parameters():
        param.grad = torch.randn_like(param)
    optimizer.step()
    checkpoint.save(
        folder,
        optimizer=optimizer,
        model=layers if model else None,
        max_shard_bytes=5000,
        overwrite=True,
    )
    return LocalStore(folder)


def manifest_of(store: LocalStore) -> bytes:
    return (store.path / "luma.json").read_bytes()


class Watching(httpx.HTTPTransport):
    """Keeps what is asked, and does things on the way.

    Attributes:
        asked: method and path of each request.
        most: how many were on their way at a time.
    """

    def __init__(self, before=None, after=None) -> None:
        super().__init__()
        self.asked: list[tuple[str, str]] = []
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()
        self._before = before or (lambda request: request)
        self._after = after or (lambda request, response: response)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        with self._lock:
            self.asked.append((request.method, request.url.path))
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            return self._after(request, super().handle_request(self._before(request)))
        finally:
            with self._lock:
                self._now -= 1

    def parts(self) -> list[str]:
        return [path for method, path in self.asked if method == "PUT" and "/parts/" in path]


def watched(server, **hooks) -> tuple[Client, Watching]:
    transport = Watching(**hooks)
    retries = Retries(first_wait_seconds=0.01, longest_wait_seconds=0.05)
    return Client(server.address, transport=transport, retries=retries), transport
