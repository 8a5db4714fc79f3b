"""What is measured, one function a group of rows."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.service import data
from benchmarks.service.load import Load, answer_of, fetch, load
from benchmarks.service.processes import (
    BUCKET,
    Server,
    binary,
    luma_server,
    nginx_server,
    seaweedfs,
)
from luma_client import Client
from luma_core.checkpoint import Manifest
from luma_core.checkpoint.storage.local import LocalStore

TRANSFER_BYTES = 2 << 30
MEMORY_BYTES = 1 << 30
MEMORY_CLIENTS = 8
STATS_LAYERS = 12
STATS_CLIENTS = 8
STATS_REQUESTS = 4000
LISTED = 10_000
PAGE = 100
FIRST_PARAMETERS = 1e9

PULL_SHARE, PUSH_SHARE = 0.6, 0.5
MEMORY_LIMIT_BYTES = 300 << 20
STATS_PER_SECOND, STATS_P99_SECONDS = 300.0, 0.1
LISTING_P95_SECONDS = 0.2
FIRST_PER_SECOND = 100e6


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: what was measured.
        value: the figure.
        unit: of it.
        target: what it must reach; ``None`` where it only explains another row.
        at_most: whether the target is a bound from above.
        note: what else there is to know.
    """

    name: str
    value: float
    unit: str
    target: float | None = None
    at_most: bool = False
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is reached."""
        if self.target is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target


@dataclass(frozen=True)
class Job:
    """How to measure.

    Attributes:
        folder: an empty one of this group's own.
        scale: of all sizes and counts.
        rounds: of which medians are taken, where a row can be measured again.
        nginx: program; ``None`` where there is none.
    """

    folder: Path
    scale: float
    rounds: int
    nginx: str | None

    def large(self, size_bytes: float) -> tuple[Path, Manifest]:
        """Save a checkpoint of that size, times the scale, as ``root/base/0``."""
        place = self.folder / "root" / "base" / "0"
        manifest = data.save_large(place, size_bytes * self.scale / data.BYTES_PER_PARAMETER)
        return place, manifest


Skipped = str
"""Why a group was left out."""


def _seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _sha256sum(folder: Path) -> None:
    files = [str(path) for path in sorted(folder.iterdir())]
    subprocess.run(["sha256sum", *files], stdout=subprocess.DEVNULL, check=True)


def _in_turns(
    actions: dict[str, Callable[[Path], object]],
    job: Job,
    size_bytes: int,
    *,
    undo: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Do actions in turns, each into an empty folder; return median bytes per second.

    ``undo`` is called after each, outside its time.
    """
    found: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(job.rounds):
        for name, action in actions.items():
            target = job.folder / "target"
            target.mkdir()
            # What the last one left to be written back must not slow the next.
            os.sync()
            found[name].append(_seconds(partial(action, target)))
            shutil.rmtree(target)
            undo()
    return {name: size_bytes / statistics.median(times) for name, times in found.items()}


def _size(manifest: Manifest) -> int:
    return sum(file.bytes for file in manifest.files)


def pull(job: Job) -> Iterator[Row] | Skipped:
    """Fetch a checkpoint from nginx and from the server."""
    if job.nginx is None:
        return "there is no nginx on the path; --nginx names one"
    return _pull(job, job.nginx)


def _pull(job: Job, nginx: str) -> Iterator[Row]:
    place, manifest = job.large(TRANSFER_BYTES)
    root = job.folder / "root"
    _sha256sum(place)
    with (
        nginx_server(nginx, root, job.folder / "nginx") as plain,
        luma_server(root) as server,
        Client(server.url) as client,
    ):

        def fetch_all(address: str, target: Path) -> None:
            for file in manifest.files:
                fetch(f"{address}/{file.name}", target / file.name)

        def checked(target: Path) -> None:
            fetch_all(f"{plain}/base/0", target)
            _sha256sum(target)

        def download(target: Path) -> None:
            client.download("base", "0", LocalStore(target))

        actions: dict[str, Callable[[Path], object]] = {
            "nginx": partial(fetch_all, f"{plain}/base/0"),
            "server": partial(fetch_all, f"{server.url}/v1/checkpoints/base/0/files"),
            "nginx, sha256sum": checked,
            "client": download,
        }
        rates = _in_turns(actions, job, _size(manifest))
    pairs = (("server", "nginx", PULL_SHARE), ("client", "nginx, sha256sum", None))
    for ours, theirs, target in pairs:
        note = f"{rates[ours] / 1e6:.0f} and {rates[theirs] / 1e6:.0f} MB/s"
        yield Row(f"pull, {ours}: of {theirs}", rates[ours] / rates[theirs], "", target, note=note)


def push(job: Job) -> Iterator[Row]:
    """Send a checkpoint to the server."""
    place, manifest = job.large(TRANSFER_BYTES)
    served = job.folder / "served"
    served.mkdir()
    _sha256sum(place)
    with luma_server(served) as server, Client(server.url) as client:

        def send(_: Path) -> None:
            client.upload(LocalStore(place), manifest.to_bytes(), "pushed", "0")

        def forget() -> None:
            # The next push would find its files there already.
            for info in client.checkpoints():
                client.delete(info.run, info.step)

        actions: dict[str, Callable[[Path], object]] = {
            "cp, sha256sum": partial(_copy, place, synced=False),
            "cp, sync, sha256sum": partial(_copy, place, synced=True),
            "push": send,
        }
        rates = _in_turns(actions, job, _size(manifest), undo=forget)
    for name, target in (("cp, sha256sum", PUSH_SHARE), ("cp, sync, sha256sum", None)):
        note = f"{rates['push'] / 1e6:.0f} and {rates[name] / 1e6:.0f} MB/s"
        yield Row(f"push: of {name}", rates["push"] / rates[name], "", target, note=note)


def _copy(source: Path, target: Path, *, synced: bool) -> None:
    copy = target / "copy"
    subprocess.run(["cp", "-r", str(source), str(copy)], check=True)
    if synced:
        subprocess.run(["sync", *map(str, copy.iterdir()), str(copy)], check=True)
    _sha256sum(copy)


def memory(job: Job) -> Iterator[Row]:
    """Let clients push and pull at the same time, and look at the server's memory."""
    place, manifest = job.large(MEMORY_BYTES)
    with luma_server(job.folder / "root") as server, Client(server.url) as client:
        client.health()
        idle = server.anonymous_bytes()
        failed: list[BaseException] = []
        threads = [
            threading.Thread(target=_kept(action, failed), args=(index,))
            for index in range(MEMORY_CLIENTS)
            for action in _transfers(server, place, manifest)
        ]
        with server.peak() as peak:
            seconds = _seconds(lambda: _run(threads))
        if failed:
            raise failed[0]
        count = len(client.checkpoints(run="pushed"))
    if count != MEMORY_CLIENTS:
        raise RuntimeError(f"{count} of {MEMORY_CLIENTS} checkpoints arrived")
    total = 2 * MEMORY_CLIENTS * _size(manifest)
    yield Row(
        f"memory over idle, {MEMORY_CLIENTS} push and {MEMORY_CLIENTS} pull",
        (peak[0] - idle) / 2**20,
        "MiB",
        MEMORY_LIMIT_BYTES / 2**20,
        at_most=True,
        note=f"idle {idle / 2**20:.0f} MiB; {total / seconds / 1e6:.0f} MB/s in all",
    )


def _transfers(server: Server, place: Path, manifest: Manifest) -> list[Callable[[int], None]]:
    def send(index: int) -> None:
        source = data.Stamped(place, manifest, index)
        with Client(server.url) as client:
            client.upload(source, source.manifest.to_bytes(), "pushed", str(index))

    def take(_: int) -> None:
        for file in manifest.files:
            fetch(f"{server.url}/v1/checkpoints/base/0/files/{file.name}", Path(os.devnull))

    return [send, take]


def _kept(action: Callable[[int], None], failed: list[BaseException]) -> Callable[[int], None]:
    def call(index: int) -> None:
        try:
            action(index)
        except BaseException as error:
            failed.append(error)

    return call


def _run(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def stats(job: Job) -> Iterator[Row]:
    """Ask for statistics that are known already."""
    root = job.folder / "root"
    data.save_wide(root / "wide" / "0", STATS_LAYERS)
    path = "/v1/checkpoints/wide/0/stats"
    with luma_server(root) as server:
        first = answer_of(server.url, path)
        count = max(STATS_CLIENTS, round(STATS_REQUESTS * job.scale))
        kinds: dict[str, tuple[dict[str, str], int]] = {
            "whole": ({}, 200),
            "If-None-Match": ({"If-None-Match": first.etag}, 304),
        }
        for name, (headers, status) in kinds.items():
            done = [
                load(
                    server.url,
                    path,
                    clients=STATS_CLIENTS,
                    requests=count,
                    headers=headers,
                    status=status,
                )
                for _ in range(job.rounds)
            ]
            yield from _stats_rows(name, done, len(first.body))


def _stats_rows(name: str, done: list[Load], body_bytes: int) -> Iterator[Row]:
    rate = statistics.median(len(one.times) / one.seconds for one in done)
    p99 = statistics.median(one.quantile(0.99) for one in done)
    note = f"{STATS_CLIENTS} clients, {body_bytes / 1e3:.0f} kB of JSON"
    yield Row(f"stats known, {name}", rate, "requests/s", STATS_PER_SECOND, note=note)
    yield Row(f"stats known, {name}: p99", p99 * 1e3, "ms", STATS_P99_SECONDS * 1e3, at_most=True)


def listing(job: Job) -> Iterator[Row]:
    """List all pages of many checkpoints, of a folder and of a bucket."""
    count = max(2 * PAGE, round(LISTED * job.scale))
    template = job.folder / "template"
    data.save_wide(template, 1)
    root = job.folder / "many"
    root.mkdir()
    data.save_many(str(root), template, count)
    with luma_server(root) as server:
        yield from _listing_rows(server, "folder", ("cold", "warm"), count)
    shutil.rmtree(root)
    weed = binary("weed")
    if weed is None:
        return
    bucket = f"s3://{BUCKET}/many"
    with seaweedfs(weed, job.folder / "weed") as environment:
        os.environ.update(environment)
        data.make_bucket(BUCKET)
        data.save_many(bucket, template, count)
        with luma_server(bucket) as server:
            yield from _listing_rows(server, "S3", ("never listed", "warm"), count)
        with luma_server(bucket) as server:
            yield from _listing_rows(server, "S3", ("cold",), count)


def _listing_rows(server: Server, where: str, kinds: tuple[str, ...], count: int) -> Iterator[Row]:
    for kind in kinds:
        times = _walk(server.url, count)
        done = Load(sum(times), tuple(sorted(times)), 0)
        yield Row(
            f"page of {PAGE} out of {count}, {where}, {kind}: p95",
            done.quantile(0.95) * 1e3,
            "ms",
            None if kind == "never listed" else LISTING_P95_SECONDS * 1e3,
            at_most=True,
            note=f"p50 {done.quantile(0.5) * 1e3:.0f} ms, the first {times[0] * 1e3:.0f} ms",
        )


def _walk(url: str, count: int) -> list[float]:
    """Ask for all pages, one after another; return how long each took."""
    times: list[float] = []
    listed = 0
    path = f"/v1/checkpoints?limit={PAGE}"
    cursor = ""
    while cursor is not None:
        answer = answer_of(url, f"{path}&cursor={cursor}" if cursor else path)
        page = json.loads(answer.body)
        listed += len(page["items"])
        cursor = page["next_cursor"]
        times.append(answer.seconds)
    if listed != count:
        raise RuntimeError(f"the pages hold {listed} checkpoints, not {count}")
    return times


def first(job: Job) -> Iterator[Row]:
    """Compute the statistics of a large checkpoint."""
    _, manifest = job.large(FIRST_PARAMETERS * data.BYTES_PER_PARAMETER)
    _sha256sum(job.folder / "root" / "base" / "0")
    with luma_server(job.folder / "root") as server:
        answer = answer_of(server.url, "/v1/checkpoints/base/0/stats")
    elements = manifest.summary.elements
    yield Row(
        "first statistics",
        elements / answer.seconds / 1e6,
        "M parameters/s",
        FIRST_PER_SECOND / 1e6,
        note=f"{elements / 1e6:.0f} M parameters in {answer.seconds:.1f} s",
    )


GROUPS: dict[str, Callable[[Job], Iterator[Row] | Skipped]] = {
    "pull": pull,
    "push": push,
    "memory": memory,
    "stats": stats,
    "listing": listing,
    "first": first,
}
