"""Plain HTTP clients: one that fetches files, and some that ask without a pause."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

BUFFER_BYTES = 1 << 20


def fetch(url: str, target: Path) -> None:
    """Write what is at a URL to a file.

    Raises:
        RuntimeError: the answer is not 200, or not whole.
    """
    connection = _connection(url)
    connection.request("GET", urlsplit(url).path)
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(f"{url}: {answer.status}")
    left = answer.length or 0
    buffer = memoryview(bytearray(BUFFER_BYTES))
    with target.open("wb", buffering=0) as out:
        while left and (count := answer.readinto(buffer)):
            out.write(buffer[:count])
            left -= count
    connection.close()
    if left:
        raise RuntimeError(f"{url}: {left} bytes are missing")


def _connection(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    assert parts.hostname is not None
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=300)


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        seconds: it took.
        status: of HTTP.
        etag: of it.
        body: of it.
    """

    seconds: float
    status: int
    etag: str
    body: bytes


def ask(
    url: str, paths: Iterable[tuple[str, dict[str, str]]], use: Callable[[Answer], None]
) -> None:
    """Ask for paths, each with headers, one after another over one connection."""
    connection = _connection(url)
    for path, headers in paths:
        began = time.perf_counter()
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        seconds = time.perf_counter() - began
        use(Answer(seconds, answer.status, answer.headers.get("ETag", ""), body))
    connection.close()


def answer_of(url: str, path: str) -> Answer:
    """Ask once.

    Raises:
        RuntimeError: the answer is not 200.
    """
    found: list[Answer] = []
    ask(url, [(path, {})], found.append)
    if found[0].status != 200:
        raise RuntimeError(f"{path}: {found[0].status}: {found[0].body[:500]!r}")
    return found[0]


@dataclass(frozen=True)
class Load:
    """What came of asking without a pause.

    Attributes:
        seconds: from the first request to the last answer.
        times: of each answer, sorted.
        bytes: of all bodies.
    """

    seconds: float
    times: tuple[float, ...]
    bytes: int

    def quantile(self, share: float) -> float:
        """Return the time in which that share of all requests was answered."""
        return self.times[min(len(self.times) - 1, int(share * len(self.times)))]


def load(
    url: str, path: str, *, clients: int, requests: int, headers: dict[str, str], status: int
) -> Load:
    """Let some clients ask for a path, each the same number of times.

    Raises:
        RuntimeError: an answer has another status.
    """
    answers: list[tuple[float, int]] = []
    wrong: list[int] = []

    def use(answer: Answer) -> None:
        answers.append((answer.seconds, len(answer.body)))
        if answer.status != status:
            wrong.append(answer.status)

    each = [(path, headers)] * (requests // clients)
    threads = [threading.Thread(target=ask, args=(url, each, use)) for _ in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    if wrong or len(answers) != clients * len(each):
        raise RuntimeError(f"{path}: {len(answers)} answers, wrong ones: {wrong[:3]}")
    times = tuple(sorted(seconds for seconds, _ in answers))
    return Load(seconds, times, sum(count for _, count in answers))
