"""A claim holds for as long as its server is at work, however long a single call takes."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import NoReturn

import pytest

from luma_core.checkpoint.storage.open import open_store
from luma_core.checkpoint.storage.s3 import S3Store
from luma_core.errors import ConcurrentSaveError
from luma_server.catalog import claims
from luma_server.catalog.claims import CLAIM_NAME, LostClaimError, claimed, held
from luma_server.catalog.place import Root
from luma_server.uploads.assembly import MIN_PART_BYTES, assemble

RENEWALS = 3


@pytest.fixture
def root() -> Root:
    return Root(f"memory://claims-{secrets.token_hex(4)}")


@pytest.fixture
def often(monkeypatch) -> None:
    """Claims are renewed ten times a second, and stale only after ten minutes."""
    monkeypatch.setattr(claims, "_RENEWALS", 10 * claims.STALE_SECONDS)


def refuse_until_renewed(root: Root) -> None:
    """Ask for a claim that is held, again and again, until it was renewed some times."""
    store, seen = root.private("claims", "gpt", "1"), set()
    while len(seen) <= RENEWALS:
        with pytest.raises(ConcurrentSaveError), claimed(root, "gpt", "1"):
            pass
        seen.add(store.version(CLAIM_NAME))
        time.sleep(0.01)


@pytest.mark.usefixtures("often")
def test_a_claim_holds_through_a_long_call(root) -> None:
    with claimed(root, "gpt", "1") as check:
        refuse_until_renewed(root)
        check()
    with claimed(root, "gpt", "1"):
        pass
    assert root.private("claims", "gpt", "1").names() == []


def check_for_ever(check: Callable[[], None]) -> NoReturn:
    while True:
        check()
        time.sleep(0.01)


@pytest.mark.usefixtures("often")
def test_a_claim_that_was_taken_over_is_told_and_left_alone(root) -> None:
    store = root.private("claims", "gpt", "1")
    with claimed(root, "gpt", "1") as check:
        with store.write(CLAIM_NAME) as out:
            out.write(b'{"claim": "of another"}')
            out.commit()
        with pytest.raises(LostClaimError):
            check_for_ever(check)
    assert store.read_range(CLAIM_NAME, 0, 100) == b'{"claim": "of another"}'


def test_a_claim_that_cannot_be_renewed_ends(root, monkeypatch) -> None:
    store = root.private("claims", "gpt", "1")
    now = [1000.0]
    monkeypatch.setattr(claims, "time", SimpleNamespace(time=time.time, monotonic=lambda: now[0]))
    with held(store, "gpt/1", stale_seconds=600.0) as check:
        check()

        def fail(*_, **__):
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(type(store), "write", fail)
        now[0] += 599
        check()
        now[0] += 2
        with pytest.raises(LostClaimError):
            check()


@pytest.mark.usefixtures("often")
def test_a_copy_within_the_store_that_takes_long_keeps_the_claim(bucket, monkeypatch) -> None:
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
            refuse_until_renewed(root)
            refused.append(True)
        return request(self, method, name, **arguments)

    monkeypatch.setattr(S3Store, "request", slow)
    with claimed(root, "gpt", "1") as tick:
        parts = [(str(number), size) for number, size in enumerate(sizes)]
        assert assemble(source, parts, target, "whole", tick)
        tick()
    assert refused
    assert open_store(target.url).size("whole") == sum(sizes)
