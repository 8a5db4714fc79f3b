"""Over a bucket: several servers need nothing but the store."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from luma_core import checkpoint
from luma_server import Settings
from luma_server.catalog.listing import RemoteListing
from tests.serving import running_several


@pytest.fixture
def place(bucket) -> str:
    return f"{bucket}/served/{secrets.token_hex(8)}"


def servers(place: str, count: int) -> contextlib.AbstractContextManager[list[httpx.Client]]:
    settings = Settings(root=place, allow_anonymous=True, part_bytes=1024, list_cache_seconds=30)
    return running_several(settings, count)


def test_push_list_read_and_delete_on_two_servers(place, source, uploader_of) -> None:
    with servers(place, 2) as (a, b):
        one, other = uploader_of(a), uploader_of(b)
        session = one.begin(source, "gpt", "1")
        assert other.commit(session).json()["code"] == "upload_incomplete"
        other.send(session, source)
        assert one.commit(session).status_code == 201
        opened = checkpoint.open(f"{place}/gpt/1")
        assert opened.manifest.digest == checkpoint.open(source).manifest.digest
        assert checkpoint.verify(f"{place}/gpt/1").ok
        assert len(a.get("/v1/checkpoints").json()["items"]) == 1
        for file in b.get("/v1/checkpoints/gpt/1/files").json()["items"]:
            path = f"/v1/checkpoints/gpt/1/files/{file['name']}"
            data = (source / file["name"]).read_bytes()
            assert b.get(path).content == data
            assert b.get(path, headers={"Range": "bytes=-5"}).content == data[-5:]
        again = one.begin(source, "gpt", "2")
        assert not any(file["needed"] for file in again["files"])
        assert one.commit(again).status_code == 201
        assert b.put("/v1/checkpoints/gpt/2/pin").status_code == 204
        assert a.delete("/v1/checkpoints/gpt/2").json()["code"] == "pinned"
        assert a.delete("/v1/checkpoints/gpt/1").status_code == 204
        assert b.get("/v1/checkpoints/gpt/1").status_code == 404
        assert checkpoint.verify(f"{place}/gpt/2").ok
        assert a.get("/v1/checkpoints/gpt/2/stats").status_code == 200


def test_one_of_three_commits_at_the_same_time(place, source, optimizer, uploader_of) -> None:
    sources = [source]
    for seed in (31, 32):
        sources.append(shutil.copytree(source, source.parent / f"other-{seed}"))
        checkpoint.save(sources[-1] / "x", optimizer=optimizer(seed), max_shard_bytes=3000)
        sources[-1] = sources[-1] / "x"
    barrier = threading.Barrier(3, timeout=60)
    with servers(place, 3) as clients:

        def push(number: int) -> int:
            uploader = uploader_of(clients[number])
            session = uploader.begin(sources[number], "race", "1")
            uploader.send(session, sources[number])
            barrier.wait()
            answer = uploader.commit(session)
            while answer.json().get("code") == "commit_in_progress":
                answer = uploader.commit(session)
            return answer.status_code

        with ThreadPoolExecutor(3) as pool:
            statuses = list(pool.map(push, range(3)))
    assert sorted(statuses) == [201, 409, 409]
    assert checkpoint.verify(f"{place}/race/1").ok
    winner = sources[statuses.index(201)]
    digest = checkpoint.open(winner).manifest.digest
    assert checkpoint.open(f"{place}/race/1").manifest.digest == digest


def test_a_claim_of_a_server_that_is_gone_is_taken_over(
    place, source, uploader_of, monkeypatch
) -> None:
    from luma_server.catalog import claims
    from luma_server.catalog.place import Root

    store = Root(place).private("claims", "gpt", "1")
    with store.write("claim.json") as out:
        out.write(b"{}")
        out.commit()
    with servers(place, 1) as (http,):
        uploader = uploader_of(http)
        session = uploader.begin(source, "gpt", "1")
        uploader.send(session, source)
        assert uploader.commit(session).json()["code"] == "commit_in_progress"
        # Long enough for the commit's own claim; the other is older at some later try.
        monkeypatch.setattr(claims, "STALE_SECONDS", 3.0)
        statuses = (uploader.commit(session).status_code for _ in range(600))
        assert any(status == 201 or time.sleep(0.1) for status in statuses)
    assert store.names() == []


def test_listing_and_single_looks_agree_on_a_manifests_identity(place, source) -> None:
    from luma_core.checkpoint.storage.open import open_store

    target = open_store(f"{place}/gpt/1")
    for path in source.iterdir():
        with target.write(path.name) as out:
            out.write(path.read_bytes())
            out.commit()
    listing = RemoteListing(open_store(place), 1.0)
    assert list(listing.walk()) == [listing.look("gpt", "1")]
    listing.close()
