"""A claim holds for as long as its server is at work, however long a single call takes."""

from __future__ import annotations

import secrets
import time

import pytest

from luma_core.checkpoint.storage.open import open_store
from luma_core.checkpoint.storage.s3 import S3Store
from luma_core.errors import ConcurrentSaveError
from luma_server.catalog import claims
from luma_server.catalog.claims import CLAIM_NAME, LostClaimError, claimed, held
from luma_server.catalog.place import Root
from luma_server.uploads.assembly import MIN_PART_BYTES, assemble

STALE_SECONDS = 1.0


@pytest.fixture
def root(monkeypatch) -> Root:
    monkeypatch.setattr(claims, "STALE_SECONDS", STALE_SECONDS)
    return Root(f"memory://claims-{secrets.token_hex(4)}")


def test_a_claim_holds_through_a_long_call(root) -> None:
    with claimed(root, "gpt", "1") as check:
        end = time.monotonic() + 2 * STALE_SECONDS
        while time.monotonic() < end:
            with pytest.raises(ConcurrentSaveError), claimed(root, "gpt", "1"):
                pass
            time.sleep(0.1)
        check()
    with claimed(root, "gpt", "1"):
        pass
    assert root.private("claims", "gpt", "1").names() == []


def test_a_claim_that_was_taken_over_is_told_and_left_alone(root) -> None:
    store = root.private("claims", "gpt", "1")
    with claimed(root, "gpt", "1") as check:
        with store.write(CLAIM_NAME) as out:
            out.write(b'{"claim": "of another"}')
            out.commit()
        time.sleep(0.5 * STALE_SECONDS)
        with pytest.raises(LostClaimError):
            check()
    assert store.read_range(CLAIM_NAME, 0, 100) == b'{"claim": "of another"}'


def test_a_claim_that_cannot_be_renewed_ends(root, monkeypatch) -> None:
    store = root.private("claims", "gpt", "1")
    with held(store, "gpt/1", stale_seconds=0.3) as check:
        check()

        def fail(*_, **__):
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(type(store), "write", fail)
        time.sleep(0.5)
        with pytest.raises(LostClaimError):
            check()


def test_a_copy_within_the_store_that_takes_long_keeps_the_claim(bucket, monkeypatch) -> None:
    # S3 tells the second in which an object was written.
    stale_seconds = 3.0
    monkeypatch.setattr(claims, "STALE_SECONDS", stale_seconds)
    root = Root(f"{bucket}/claims/{secrets.token_hex(8)}")
    source, target = root.private("uploads", "x"), root.checkpoint("gpt", "1")
    sizes = [MIN_PART_BYTES, 10]
    for number, size in enumerate(sizes):
        with source.write(str(number)) as out:
            out.write(bytes([number]) * size)
            out.commit()
    refused = []
    request = S3Store.request

    def slow(self, method, name, **arguments):
        if method == "upload_part_copy" and arguments["PartNumber"] == 1:
            end = time.monotonic() + 1.2 * stale_seconds
            while time.monotonic() < end:
                with pytest.raises(ConcurrentSaveError), claimed(root, "gpt", "1"):
                    pass
                refused.append(True)
                time.sleep(0.3)
        return request(self, method, name, **arguments)

    monkeypatch.setattr(S3Store, "request", slow)
    with claimed(root, "gpt", "1") as tick:
        parts = [(str(number), size) for number, size in enumerate(sizes)]
        assert assemble(source, parts, target, "whole", tick)
        tick()
    assert refused
    assert open_store(target.url).size("whole") == sum(sizes)
