"""What the client asks again for, how long it waits, and what it resumes."""

from __future__ import annotations

import hashlib
from email.utils import formatdate
from itertools import pairwise

import httpx
import pytest

from luma_client import Client, Retries
from luma_client.effects import BrokenError, Reply, Request, Sleep
from luma_client.exchange import Endpoint, exchange, wait_for
from luma_core.errors import (
    CheckpointNotFoundError,
    ConfigurationError,
    CorruptCheckpointError,
    ServiceError,
)

BASE = "http://server.test"
FAST = Retries(attempts=4, first_wait_seconds=0.001, longest_wait_seconds=0.01)
HEALTHY = {"status": "ok", "version": "1"}


class Script(httpx.MockTransport):
    """Answers each request by the next of a list; the last one goes on."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        super().__init__(self.answer)

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer(request) if callable(answer) else answer

    def client(self, retries: Retries = FAST) -> Client:
        return Client(BASE, transport=self, retries=retries)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_passing_statuses_are_asked_again(status):
    script = Script(
        httpx.Response(status), httpx.Response(status), httpx.Response(200, json=HEALTHY)
    )
    with script.client() as client:
        assert client.health().status == "ok"
    assert len(script.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 500, 501])
def test_other_statuses_are_final(status):
    script = Script(httpx.Response(status))
    with script.client() as client, pytest.raises(ServiceError) as caught:
        client.health()
    assert caught.value.status == status
    assert len(script.requests) == 1


def test_attempts_are_counted():
    script = Script(httpx.Response(503))
    with script.client() as client, pytest.raises(ServiceError):
        client.health()
    assert len(script.requests) == FAST.attempts


def test_a_broken_connection_is_asked_again():
    script = Script(httpx.ReadError("reset"), httpx.Response(200, json=HEALTHY))
    with script.client() as client:
        assert client.health().status == "ok"


def test_a_refused_connection_is_final_until_the_server_has_answered_once():
    refused = httpx.ConnectError("refused")
    script = Script(refused, refused, httpx.Response(200, json=HEALTHY))
    with script.client() as client, pytest.raises(ServiceError, match="cannot connect"):
        client.health()
    assert len(script.requests) == 1
    script = Script(httpx.Response(404), refused, refused, httpx.Response(200, json=HEALTHY))
    with script.client() as client:
        with pytest.raises(ServiceError):
            client.health()
        assert client.health().status == "ok"


def steps_of(*outcomes: object, retries: Retries) -> list[float]:
    """Return the waits of an exchange whose requests have these outcomes."""
    endpoint = Endpoint(BASE, timeout_seconds=1, retries=retries)
    steps = exchange(endpoint, Request("GET", BASE))
    waits, left = [], list(outcomes)
    effect = next(steps)
    try:
        while True:
            if isinstance(effect, Sleep):
                waits.append(effect.seconds)
                effect = steps.send(None)
            elif isinstance(outcome := left.pop(0), BrokenError):
                effect = steps.throw(outcome)
            else:
                effect = steps.send(outcome)
    except StopIteration:
        return waits


def test_waits_double_with_jitter_up_to_a_bound():
    retries = Retries(attempts=8, first_wait_seconds=1, longest_wait_seconds=16)
    waits = steps_of(*[BrokenError("broken", "x")] * 7, Reply(BASE, 200, {}), retries=retries)
    assert len(waits) == 7
    for wait, longest in zip(waits, (1, 2, 4, 8, 16, 16, 16), strict=True):
        assert longest / 2 <= wait <= longest
    others = steps_of(*[BrokenError("broken", "x")] * 7, Reply(BASE, 200, {}), retries=retries)
    assert waits != others
    assert all(a <= 2 * b for a, b in pairwise(waits))


@pytest.mark.parametrize(
    ("header", "expected"),
    [("5", 5.0), (None, 1.0), ("soon", 1.0), ("-3", 1.0), ("0", 1.0), ("31", None)],
)
def test_retry_after(header, expected):
    headers = {} if header is None else {"Retry-After": header}
    assert wait_for(Reply(BASE, 429, headers), 1.0, Retries(longest_wait_seconds=30)) == expected


def test_retry_after_as_a_date(monkeypatch):
    now = 1_700_000_000.0
    monkeypatch.setattr("luma_client.exchange.time", lambda: now)
    for seconds, expected in ((10, 10.0), (-10, 1.0)):
        headers = {"Retry-After": formatdate(now + seconds, usegmt=True)}
        assert wait_for(Reply(BASE, 503, headers), 1.0, Retries()) == expected


@pytest.mark.parametrize(
    "options",
    [{"attempts": 0}, {"attempts": 1.5}, {"first_wait_seconds": -1}, {"longest_wait_seconds": -1}],
)
def test_retries_that_cannot_work(options):
    with pytest.raises(ConfigurationError, match=f"{next(iter(options))}="):
        Retries(**options)


DATA = bytes(range(256)) * 20
TAG = f'"{hashlib.sha256(DATA).hexdigest()}"'


class Cut(httpx.SyncByteStream):
    """A body that breaks off."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __iter__(self):
        yield self.data
        raise httpx.ReadError("reset")


def ranged(request: httpx.Request, *, cut: int | None = None, tag: str = TAG) -> httpx.Response:
    first, last = map(int, request.headers["Range"].removeprefix("bytes=").split("-"))
    if request.headers.get("If-Range", tag) != tag:
        return httpx.Response(200, content=DATA, headers={"ETag": tag})
    headers = {"Content-Range": f"bytes {first}-{last}/{len(DATA)}", "ETag": tag}
    data = DATA[first : last + 1]
    if cut is None:
        return httpx.Response(206, content=data, headers=headers)
    return httpx.Response(206, stream=Cut(data[:cut]), headers=headers)


def test_a_broken_download_asks_for_what_is_missing():
    script = Script(*[lambda request: ranged(request, cut=700)] * 6, ranged)
    with script.client() as client:
        assert client.read("r", "s", "f", 100, 5100) == DATA[100:5100]
    asked = [request.headers["Range"] for request in script.requests]
    assert asked == [f"bytes={100 + 700 * done}-5099" for done in range(7)]
    assert [request.headers.get("If-Range") for request in script.requests] == [None, *[TAG] * 6]


def test_a_download_that_never_gets_on_ends():
    script = Script(lambda request: ranged(request, cut=0))
    with script.client() as client, pytest.raises(ServiceError, match="reset"):
        client.read("r", "s", "f", 0, 50)
    assert len(script.requests) == FAST.attempts


def test_a_file_that_was_replaced_meanwhile():
    script = Script(
        lambda request: ranged(request, cut=700), lambda request: ranged(request, tag='"other"')
    )
    with script.client() as client, pytest.raises(CorruptCheckpointError, match="replaced while"):
        client.read("r", "s", "f", 0, 5000)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (httpx.Response(200, content=DATA), "no ranges"),
        (httpx.Response(206, content=DATA, headers={"Content-Range": "bytes 0-9/99"}), "longer"),
        (httpx.Response(206, content=b"x", headers={"Content-Range": "bytes 5-6/9"}), "another"),
        (httpx.Response(206, content=b"x"), "another"),
    ],
)
def test_ranges_of_other_servers(answer, message):
    with Script(answer).client() as client, pytest.raises(ServiceError, match=message):
        client.read("r", "s", "f", 0, 10)


def test_ranges_behind_the_end_and_missing_files():
    with Script(httpx.Response(416)).client() as client:
        assert client.read("r", "s", "f", 10, 20) == b""
    with Script(httpx.Response(200, headers={"Content-Length": "0"})).client() as client:
        assert client.read("r", "s", "f", 0, 20) == b""
    with Script(httpx.Response(404)).client() as client, pytest.raises(CheckpointNotFoundError):
        client.read("r", "s", "f", 0, 20)
