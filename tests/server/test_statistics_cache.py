"""Statistics are computed once, however many servers are asked for them at the same time."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch

from luma_core import LUMA, checkpoint, stats
from luma_core.checkpoint.storage.local import LocalStore
from luma_server import Settings, statistics_cache
from luma_server.catalog.place import Root
from luma_server.service import Service
from tests.serving import running_several

PATH = "/v1/checkpoints/gpt/9/stats"


@pytest.fixture
def counted(monkeypatch) -> tuple[list[threading.Thread], threading.Event]:
    """Who computes statistics; each computation lasts until the event is set."""
    release, lock = threading.Event(), threading.Lock()
    runs: list[threading.Thread] = []
    compute = stats.compute

    def slow(source, **options):
        with lock:
            runs.append(threading.current_thread())
        assert release.wait(30)
        return compute(source, **options)

    monkeypatch.setattr(stats, "compute", slow)
    return runs, release


@contextlib.contextmanager
def asked(root: object, count: int, path: str = PATH) -> Iterator[list[Future]]:
    """Ask as many servers over a root for the same; give their answers to come."""
    settings = Settings(root=root, allow_anonymous=True)
    with running_several(settings, count) as clients, ThreadPoolExecutor(count) as pool:
        yield [pool.submit(client.get, path) for client in clients]


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def one_of_three(root: object, counted) -> None:
    runs, release = counted
    with asked(root, 3) as answers:
        until(lambda: runs)
        time.sleep(0.6)
        assert not any(answer.done() for answer in answers)
        release.set()
        found = [answer.result() for answer in answers]
    assert [answer.status_code for answer in found] == [200] * 3
    assert len({answer.content for answer in found}) == 1
    assert len(runs) == 1


def test_one_of_three_servers_over_a_folder_computes(root, counted) -> None:
    one_of_three(root, counted)
    assert list((root / ".luma" / "measuring").iterdir()) == []


def test_one_of_three_servers_over_a_bucket_computes(bucket, root, counted) -> None:
    place = f"{bucket}/measured"
    copy(root, place)
    one_of_three(place, counted)
    digest = checkpoint.open(f"{place}/gpt/9").manifest.digest
    assert Root(place).private("measuring", digest).names() == []


def copy(root: Path, place: str) -> None:
    target = Root(place).checkpoint("gpt", "9")
    for path in sorted((root / "gpt" / "9").iterdir(), key=lambda path: path.name == "luma.json"):
        with target.write(path.name) as out:
            out.write(path.read_bytes())
            out.commit()


def test_a_server_that_fails_leaves_it_to_the_next(root, monkeypatch) -> None:
    compute, failed = stats.compute, threading.Event()

    def once_broken(source, **options):
        if not failed.is_set():
            failed.set()
            time.sleep(0.3)
            raise OSError(5, "Input/output error")
        return compute(source, **options)

    monkeypatch.setattr(stats, "compute", once_broken)
    with asked(root, 2) as answers:
        statuses = sorted(answer.result().status_code for answer in answers)
    assert statuses == [200, 503]


def test_the_lock_of_a_killed_process_ends_with_it(root, counted) -> None:
    runs, release = counted
    release.set()
    folder = root / ".luma" / "measuring" / checkpoint.open(root / "gpt" / "9").manifest.digest
    folder.mkdir(parents=True)
    code = (
        "import fcntl, os, sys, time; folder = os.open(sys.argv[1], os.O_RDONLY); "
        "fcntl.flock(folder, fcntl.LOCK_EX); print('locked', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with asked(root, 1) as (answer,):
            time.sleep(0.6)
            assert not answer.done()
            other.kill()
            assert answer.result().status_code == 200
    assert len(runs) == 1


def test_a_claim_of_a_server_that_is_gone_is_taken_over(bucket, root, counted, monkeypatch) -> None:
    runs, release = counted
    release.set()
    place = f"{bucket}/stale"
    copy(root, place)
    digest = checkpoint.open(f"{place}/gpt/9").manifest.digest
    with Root(place).private("measuring", digest).write("claim.json") as out:
        out.write(b"{}")
        out.commit()
    with asked(place, 1) as (answer,):
        time.sleep(1)
        assert not answer.done()
        monkeypatch.setattr(statistics_cache, "STALE_SECONDS", 0.5)
        assert answer.result().status_code == 200
    assert len(runs) == 1


def test_where_nothing_can_be_claimed_statistics_are_computed(root, monkeypatch) -> None:
    @contextlib.contextmanager
    def refuse(_):
        raise PermissionError(13, "Permission denied")
        yield

    monkeypatch.setattr(LocalStore, "exclusive", refuse)
    with asked(root, 1) as (answer,):
        assert answer.result().status_code == 200


def test_statistics_of_another_version_are_computed_again(root, counted, monkeypatch) -> None:
    runs, release = counted
    release.set()
    for version, count in ((1, 1), (1, 1), (2, 2)):
        monkeypatch.setattr(statistics_cache, "STATS_VERSION", version)
        with asked(root, 1) as (answer,):
            assert answer.result().status_code == 200
        assert len(runs) == count


def test_a_series_reads_the_statistics_of_a_checkpoint_once(http, monkeypatch) -> None:
    read, original = [], Service.stats

    async def noted(self, run, step, *more):
        read.append((run, step))
        return await original(self, run, step, *more)

    monkeypatch.setattr(Service, "stats", noted)
    questions = ("", "?metric=exp_avg.max", "?module=h", "?module=h.0", "?param=head", "?param=x")
    for question in questions:
        items = http.get(f"/v1/runs/gpt/series{question}").json()["items"]
        assert {point["state"] for point in items} == {"done"}
    assert sorted(read) == [("gpt", "10"), ("gpt", "9")]


@contextlib.contextmanager
def processes(root: Path, count: int) -> Iterator[list[str]]:
    command = [sys.executable, "-m", "luma_server", "--root", str(root), "--no-auth"]
    with contextlib.ExitStack() as stack:
        started = []
        for _ in range(count):
            log = stack.enter_context((root / f"log-{len(started)}").open("wb"))
            one = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
            stack.callback(one.communicate)
            stack.callback(one.kill)
            started.append(one)
        yield [one.stdout.readline().split()[-1] for one in started]


def test_one_of_three_processes_computes(tmp_path) -> None:
    params = [(f"w{i}", torch.nn.Parameter(torch.ones(1024, 4096))) for i in range(8)]
    optimizer = LUMA(params)
    optimizer.init_state()
    checkpoint.save(tmp_path / "gpt" / "9", optimizer=optimizer, compression="none")
    with processes(tmp_path, 3) as urls, ThreadPoolExecutor(3) as pool:
        barrier = threading.Barrier(3)

        def ask(url: str) -> bytes:
            barrier.wait()
            return httpx.get(f"{url}{PATH}", trust_env=False, timeout=60).content

        assert len(set(pool.map(ask, urls))) == 1
        counts = [httpx.get(f"{url}/metrics", trust_env=False, timeout=60).text for url in urls]
    found = [float(re.search(r"^luma_measured_total (\S+)$", text, re.M)[1]) for text in counts]
    assert sorted(found) == [0, 0, 1]
