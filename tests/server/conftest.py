"""A folder of checkpoints, and servers over it on real sockets."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import torch
import uvicorn
from fastapi import FastAPI

from luma_core import LUMA, checkpoint
from luma_server import Settings, create_app


def trained(seed: int = 0) -> LUMA:
    torch.manual_seed(seed)
    params = {name: torch.nn.Parameter(torch.randn(4, 64)) for name in ("h.0.w", "h.1.w", "head")}
    optimizer = LUMA(params.items(), seed=seed)
    for param in params.values():
        param.grad = torch.randn_like(param)
    optimizer.step()
    return optimizer


@pytest.fixture
def optimizer() -> Callable[..., LUMA]:
    return trained


@pytest.fixture
def root(tmp_path) -> Path:
    """``{root}/gpt/{9,10}`` and ``{root}/bert/final``."""
    for place, seed in (("gpt/10", 1), ("gpt/9", 2), ("bert/final", 3)):
        checkpoint.save(tmp_path / "root" / place, optimizer=trained(seed))
    return tmp_path / "root"


@contextlib.contextmanager
def running(app: FastAPI) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http="h11", ws="none", lifespan="on", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture
def serving() -> Callable[[FastAPI], contextlib.AbstractContextManager[str]]:
    """Runs an application on a free port; gives its address."""
    return running


@pytest.fixture
def http(root) -> Iterator[httpx.Client]:
    """Asks a server over ``root``."""
    with (
        running(create_app(Settings(root=root))) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=30) as client,
    ):
        yield client
