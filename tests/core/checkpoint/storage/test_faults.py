"""Transient failures of a store are tried again, others are told at once; nothing is harmed."""

import contextlib
import http.client
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from luma_core import checkpoint
from luma_core.checkpoint.storage import remote
from luma_core.checkpoint.storage.open import open_store
from luma_core.checkpoint.storage.s3 import S3Store
from luma_core.checkpoint.storage.store import ABSENT
from luma_core.errors import ConcurrentSaveError, StorageError
from luma_core.testing.store import loaded_steps, put, save

HANG_SECONDS = 60
"""How long a request may hang where nobody gives it up."""


class Proxy(BaseHTTPRequestHandler):
    """Passes requests on, but answers as ``server.faults`` says while there are any."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def _handle(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append((self.command, self.path))
        with self.server.lock:
            wanted = self.command in self.server.methods
            fault = self.server.faults.pop(0) if wanted and self.server.faults else None
        if fault == "hang":
            self.server.given_up.append(self.server.go_on.wait(HANG_SECONDS))
        if fault in ("reset", "hang"):
            self._reset()
        elif fault == "lost":
            self._ask(body)
            self._reset()
        elif fault is not None:
            self._answer(*fault, {})
        else:
            self._answer(*self._ask(body))

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle

    def _ask(self, body):
        connection = http.client.HTTPConnection(self.server.target)
        with contextlib.closing(connection):
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            return answer.status, answer.read(), dict(answer.getheaders())

    def _reset(self):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _answer(self, status, body, headers):
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("date", "server", "connection", "transfer-encoding"):
                self.send_header(name, value)
        if "content-length" not in {name.lower() for name in headers}:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def error(status, code):
    return status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()


@pytest.fixture
def proxy(seaweedfs):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.target = seaweedfs.endpoint.removeprefix("http://")
    server.lock = threading.Lock()
    server.go_on, server.given_up = threading.Event(), []
    server.faults, server.seen, server.methods = [], [], {"GET", "PUT", "POST", "HEAD", "DELETE"}
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.go_on.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def store(proxy, seaweedfs, new_prefix):
    options = {**seaweedfs.options, "endpoint_url": f"http://127.0.0.1:{proxy.server_port}"}
    store = S3Store(f"s3://{seaweedfs.bucket}/{new_prefix}", **options)
    store.strategy  # noqa: B018
    proxy.seen.clear()
    return store


@pytest.mark.parametrize(
    "fault", [error(503, "SlowDown"), error(500, "InternalError"), "reset", "lost"]
)
def test_a_save_survives_what_is_transient(proxy, store, fault):
    save(store, 2)
    proxy.methods = {"PUT"}
    proxy.faults = [fault] * 2
    save(store, 3, overwrite=True)
    proxy.methods = {"GET", "HEAD"}
    proxy.faults = [fault] * 2
    assert loaded_steps(store) == 3
    assert proxy.faults == []


def test_a_lost_answer_to_the_commit_is_no_other_saver(proxy, store):
    with store.write("x", expected=ABSENT) as out:
        out.write(b"abc")
        proxy.faults = ["lost"]
        out.commit()
    assert store.read_range("x", 0, 9) == b"abc"
    with pytest.raises(ConcurrentSaveError):
        put(store, "x", b"", expected=ABSENT)


def test_a_lost_answer_to_the_completion_of_an_upload(proxy, store):
    with store.write("x") as out:
        out.write(b"a" * (20 << 20))
        proxy.methods = {"POST"}
        proxy.faults = ["lost"]
        out.write(b"b")
        proxy.faults = ["lost"]
        out.commit()
    assert store.size("x") == (20 << 20) + 1


def test_a_request_that_hangs_is_given_up_and_tried_again(proxy, seaweedfs, new_prefix):
    config = {"read_timeout": 1, "retries": {"mode": "standard", "max_attempts": 10}}
    options = {**seaweedfs.options, "endpoint_url": f"http://127.0.0.1:{proxy.server_port}"}
    store = S3Store(f"s3://{seaweedfs.bucket}/{new_prefix}", **options, config_kwargs=config)
    put(store, "x", b"abc")
    proxy.faults = ["hang"]
    assert store.read_range("x", 0, 9) == b"abc"
    # The first request hangs still, and nothing but the reader's own limit ended the wait for it.
    assert proxy.faults == proxy.given_up == []


@pytest.mark.parametrize(
    ("fault", "message"),
    [(error(403, "AccessDenied"), "AccessDenied"), (error(404, "NoSuchBucket"), "NoSuchBucket")],
)
def test_what_is_not_transient_is_told_at_once(proxy, store, fault, message):
    save(store, 2)
    proxy.methods = {"PUT"}
    proxy.faults = [fault] * 50
    proxy.seen.clear()
    with pytest.raises(StorageError, match=message) as told:
        save(store, 3, overwrite=True, max_memory_bytes=128 << 20)
    assert store.url in str(told.value)
    assert [method for method, _ in proxy.seen].count("PUT") == 1
    proxy.faults = []
    assert loaded_steps(store) == 2


def test_a_store_that_stays_away_is_told_and_leaves_the_previous_checkpoint(
    proxy, seaweedfs, new_prefix
):
    options = {**seaweedfs.options, "endpoint_url": f"http://127.0.0.1:{proxy.server_port}"}
    config = {"retries": {"mode": "standard", "max_attempts": 2}}
    store = S3Store(f"s3://{seaweedfs.bucket}/{new_prefix}", **options, config_kwargs=config)
    save(store, 2)
    before = store.names()
    proxy.methods = {"PUT"}
    proxy.faults = [error(503, "ServiceUnavailable")] * 100
    with pytest.raises(StorageError):
        save(store, 3, overwrite=True)
    proxy.faults = []
    assert store.names() == before
    assert loaded_steps(store) == 2


@pytest.fixture
def flaky(monkeypatch, request):
    """A store of a backend without retries of its own, which fails as it is told."""
    monkeypatch.setattr(remote, "FIRST_WAIT_SECONDS", 0.001)
    store = open_store("memory://flaky/x")
    plan = SimpleNamespace(faults=[], calls=0)

    def failing(function):
        def call(*args, **kwargs):
            plan.calls += 1
            if plan.faults:
                raise plan.faults.pop(0)
            return function(*args, **kwargs)

        return call

    for name in ("cat_file", "pipe_file", "info", "rm_file", "ls"):
        monkeypatch.setattr(store.fs, name, failing(getattr(store.fs, name)))
    yield store, plan
    plan.faults = []
    store.fs.rm("/flaky", recursive=True)


class TooManyRequests(Exception):
    status = 429


@pytest.mark.parametrize(
    "fault", [TimeoutError(), ConnectionResetError(), OSError(110, "x"), TooManyRequests()]
)
def test_other_backends_are_tried_again_by_us(flaky, fault):
    store, plan = flaky
    save(store, 2)
    plan.faults = [fault] * (remote.ATTEMPTS - 1)
    assert loaded_steps(store) == 2
    plan.faults = [fault] * (remote.ATTEMPTS - 1)
    save(store, 3, overwrite=True)
    assert loaded_steps(store) == 3
    plan.faults = [fault] * remote.ATTEMPTS
    with pytest.raises(StorageError):
        checkpoint.open(store)


@pytest.mark.parametrize("fault", [PermissionError("no"), OSError(28, "full"), RuntimeError("x")])
def test_other_failures_of_other_backends_are_told_at_once(flaky, fault):
    store, plan = flaky
    save(store, 2)
    plan.faults, plan.calls = [fault], 0
    with pytest.raises(StorageError):
        checkpoint.open(store)
    assert plan.calls == 1
    assert loaded_steps(store) == 2
