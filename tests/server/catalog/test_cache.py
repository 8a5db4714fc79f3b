"""Statistics are computed once at a time, kept within bounds, and never for the wrong content."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from luma_core import checkpoint, stats
from luma_server import Settings, create_app
from luma_server.catalog.cache import BoundedCache, SingleFlight


def test_the_least_recently_used_values_go_first() -> None:
    cache: BoundedCache[str, int] = BoundedCache(10)
    for key in "abc":
        cache.put(key, ord(key), 3)
    assert cache.get("a") == ord("a")
    cache.put("d", 0, 4)
    assert [cache.get(key) for key in "abcd"] == [ord("a"), None, ord("c"), 0]
    assert (len(cache), cache.size) == (3, 10)
    cache.put("a", 1, 1)
    assert cache.size == 8
    cache.put("huge", 1, 11)
    assert cache.get("huge") is None
    assert len(cache) == 3
    assert BoundedCache[str, int](0).get("a") is None


class Computation:
    """Counts its runs; ends when told to."""

    def __init__(self, result: bytes | Exception = b"value") -> None:
        self.runs = 0
        self.finish = asyncio.Event()
        self.result = result

    async def __call__(self) -> bytes:
        self.runs += 1
        await self.finish.wait()
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def test_those_who_ask_meanwhile_share_one_computation() -> None:
    async def main() -> None:
        flight: SingleFlight[str, bytes] = SingleFlight(100, len)
        compute = Computation()
        waiting = [asyncio.create_task(flight.get("k", compute)) for _ in range(5)]
        await asyncio.sleep(0.01)
        waiting[0].cancel()
        compute.finish.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert results[1:] == [b"value"] * 4
        assert await flight.get("k", compute) == b"value"
        assert compute.runs == 1

    asyncio.run(main())


def test_failures_are_told_to_all_and_not_kept() -> None:
    async def main() -> None:
        flight: SingleFlight[str, bytes] = SingleFlight(100, len)
        compute = Computation(OSError("broken"))
        waiting = [asyncio.create_task(flight.get("k", compute)) for _ in range(3)]
        await asyncio.sleep(0.01)
        compute.finish.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [str(result) for result in results] == ["broken"] * 3
        assert compute.runs == 1
        compute.result = b"mended"
        assert await flight.get("k", compute) == b"mended"
        assert compute.runs == 2

    asyncio.run(main())


def test_a_failure_nobody_waits_for_is_not_reported_as_forgotten() -> None:
    async def main() -> None:
        problems: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: problems.append(what))
        flight: SingleFlight[str, bytes] = SingleFlight(100, len)
        compute = Computation(OSError("broken"))
        waiting = asyncio.create_task(flight.get("k", compute))
        await asyncio.sleep(0.01)
        waiting.cancel()
        compute.finish.set()
        await asyncio.sleep(0.01)
        assert problems == []

    asyncio.run(main())


@pytest.fixture
def counted(monkeypatch):
    """Counts computations, and holds each until released."""
    release, lock = threading.Event(), threading.Lock()
    runs: list[str | None] = []
    compute = stats.compute

    def slow(source, *, pattern=None, progress=None):
        with lock:
            runs.append(pattern)
        assert release.wait(30)
        return compute(source, pattern=pattern, progress=progress)

    monkeypatch.setattr(stats, "compute", slow)
    return runs, release


def test_concurrent_requests_compute_each_key_once(http, counted) -> None:
    runs, release = counted
    path = "/v1/checkpoints/gpt/9/stats"
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(http.get, path) for _ in range(4)]
        answers += [pool.submit(http.get, f"{path}?param=h.*") for _ in range(4)]
        # The event loop stays free meanwhile.
        assert http.get("/healthz").status_code == 200
        release.set()
        bodies = [answer.result().content for answer in answers]
    assert len(set(bodies[:4])) == len(set(bodies[4:])) == 1
    assert bodies[0] != bodies[4]
    assert sorted(runs, key=str) == [None, "h.*"]
    http.get(path)
    assert len(runs) == 2


def test_nothing_is_kept_in_memory_without_a_cache(root, serving, counted) -> None:
    runs, release = counted
    release.set()
    with serving(create_app(Settings(root=root, allow_anonymous=True, stats_cache_bytes=0))) as url:
        for _ in range(3):
            httpx.get(f"{url}/v1/checkpoints/gpt/9/stats?param=h*", trust_env=False, timeout=60)
    assert len(runs) == 3


def test_statistics_outlive_the_server_and_damaged_ones_are_computed_again(
    root, serving, counted
) -> None:
    runs, release = counted
    release.set()

    def ask() -> bytes:
        with serving(create_app(Settings(root=root, allow_anonymous=True))) as url:
            return httpx.get(
                f"{url}/v1/checkpoints/gpt/9/stats", trust_env=False, timeout=60
            ).content

    first = ask()
    assert ask() == first
    assert len(runs) == 1
    (kept,) = (root / ".luma" / "stats").iterdir()
    kept.write_bytes(kept.read_bytes().replace(b"rms", b"rns", 1))
    assert ask() == first
    assert len(runs) == 2


def test_a_root_that_cannot_be_written_is_served_all_the_same(http, root, monkeypatch) -> None:
    from luma_core.checkpoint.storage.local import LocalStore

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(LocalStore, "write", refuse)
    assert http.get("/v1/checkpoints/gpt/9/stats").status_code == 200


def test_content_that_moved_is_not_computed_again(http, root, counted) -> None:
    runs, release = counted
    release.set()
    first = http.get("/v1/checkpoints/gpt/9/stats")
    (root / "gpt" / "9").rename(root / "gpt" / "renamed")
    second = http.get("/v1/checkpoints/gpt/renamed/stats")
    assert second.content == first.content
    assert len(runs) == 1


@pytest.mark.parametrize("when", ["before opening", "while computing"])
def test_a_checkpoint_replaced_meanwhile_is_answered_whole(
    http, root, optimizer, monkeypatch, when
) -> None:
    from luma_server.catalog.checkpoints import Catalog

    place = root / "gpt" / "9"
    replaced = []

    def replace() -> None:
        if not replaced:
            replaced.append(True)
            checkpoint.save(place, optimizer=optimizer(9), overwrite=True)

    compute, open_one = stats.compute, Catalog.open

    def open_late(self, run, step):
        # The listing has read the manifest by now, so this is the opening that computes.
        if threading.current_thread().name.startswith("luma-stats"):
            replace()
        return open_one(self, run, step)

    def compute_late(source, **options):
        replace()
        return compute(source, **options)

    if when == "before opening":
        monkeypatch.setattr(Catalog, "open", open_late)
    else:
        monkeypatch.setattr(stats, "compute", compute_late)
    response = http.get("/v1/checkpoints/gpt/9/stats")
    assert replaced
    assert response.status_code == 200
    monkeypatch.undo()
    fresh = http.get("/v1/checkpoints/gpt/9/stats")
    assert (response.content, response.headers["ETag"]) == (fresh.content, fresh.headers["ETag"])
    with checkpoint.open(place) as opened:
        rms = stats.compute(opened).total.update.rms
    assert response.json()["total"]["update"]["rms"] == rms


def test_a_checkpoint_replaced_again_and_again_is_told(http, monkeypatch) -> None:
    from luma_server.service import ReplacedError, Service

    async def never(*_):
        raise ReplacedError

    monkeypatch.setattr(Service, "stats", never)
    response = http.get("/v1/checkpoints/gpt/9/stats")
    assert (response.status_code, response.json()["code"]) == (503, "unavailable")


def test_a_server_that_stops_ends_what_it_computes(root, serving, monkeypatch) -> None:
    computing = threading.Event()

    def endless(source, *, pattern=None, progress=None):
        while True:
            computing.set()
            progress(1, 2)

    monkeypatch.setattr(stats, "compute", endless)
    app = create_app(Settings(root=root, allow_anonymous=True))
    with serving(app) as url, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.get, f"{url}/v1/checkpoints/gpt/9/stats", trust_env=False)
        assert computing.wait(30)
        app.state.service.close()
        assert answer.result(30).json()["code"] == "unavailable"
        late = httpx.get(f"{url}/v1/checkpoints/gpt/10/stats", trust_env=False, timeout=60)
        assert (late.status_code, late.json()["detail"]) == (503, "the server is stopping.")
