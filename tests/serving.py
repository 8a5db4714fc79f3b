"""Servers on real sockets, in a thread of the test's own process."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import uvicorn
from fastapi import FastAPI

from luma_server import Settings, create_app
from luma_server.http.protocol import protocol


@contextlib.contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """Run an application on a free port; give its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    http = protocol(app.state.application.settings.idle_seconds)
    config = uvicorn.Config(
        app, http=http, loop="asyncio", ws="none", lifespan="on", log_config=None
    )
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


@contextlib.contextmanager
def running_several(settings: Settings, count: int) -> Iterator[list[httpx.Client]]:
    """Run as many servers over one root; give a client of each."""
    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(running(create_app(settings))) for _ in range(count)]
        clients = [httpx.Client(base_url=url, trust_env=False, timeout=60) for url in urls]
        for client in clients:
            stack.enter_context(client)
            # FastAPI prepares routes at the first request, which servers of one process must not
            # do at the same time.
            client.get("/v1/none")
        yield clients
