"""Over a bucket, what was hashed while it came is not read again: the store joins the parts."""

from __future__ import annotations

import hashlib
import secrets

import httpx
import pytest
import torch

from luma_core import LUMA, checkpoint
from luma_core.checkpoint.storage.s3 import S3Store
from luma_server import Settings, create_app
from luma_server.uploads import remote, running
from luma_server.uploads.assembly import MIN_PART_BYTES
from luma_server.uploads.running import RunningHashes
from luma_server.uploads.staging import UploadPart


def part(number: int, data: bytes) -> UploadPart:
    return UploadPart(number, len(data), hashlib.sha256(data).hexdigest())


DATA = [b"one", b"two", b"three", b"four", b""]
PARTS = [part(number, data) for number, data in enumerate(DATA, start=1)]


@pytest.mark.parametrize("order", [(1, 2, 3, 4, 5), (5, 4, 3, 2, 1), (2, 1, 2, 4, 5, 1, 3)])
def test_parts_are_hashed_in_any_order(order) -> None:
    hashes = RunningHashes()
    for count, number in enumerate(order):
        if len(set(order[:count])) < len(PARTS):
            assert hashes.digest("file", PARTS) is None
        hashes.add("file", PARTS[number - 1], [DATA[number - 1]])
    assert hashes.digest("file", PARTS) == hashlib.sha256(b"".join(DATA)).hexdigest()
    assert hashes.digest("file", PARTS[:-1]) is None
    assert hashes.digest("other", PARTS) is None
    hashes.forget("file")
    assert hashes.digest("file", PARTS) is None


@pytest.mark.parametrize("first", [(1, 2), (2,)])
def test_a_part_that_is_replaced_gives_the_file_up(first) -> None:
    hashes = RunningHashes()
    for number in first:
        hashes.add("file", PARTS[number - 1], [DATA[number - 1]])
    other = part(2, b"TWO")
    hashes.add("file", other, [b"TWO"])
    for number in (1, 3, 4, 5):
        hashes.add("file", PARTS[number - 1], [DATA[number - 1]])
    assert hashes.digest("file", [PARTS[0], other, *PARTS[2:]]) is None
    assert hashes.digest("file", PARTS) is None


def test_what_waits_is_bounded_and_the_oldest_goes_first(monkeypatch) -> None:
    monkeypatch.setattr(running, "WAITING_BYTES", 10)
    hashes = RunningHashes()
    hashes.add("old", PARTS[2], [DATA[2]])
    hashes.add("new", PARTS[2], [DATA[2]])
    hashes.add("new", PARTS[1], [DATA[1]])
    for key in ("old", "new"):
        for number, data in enumerate(DATA, start=1):
            hashes.add(key, PARTS[number - 1], [data])
    assert hashes.digest("old", PARTS) is None
    assert hashes.digest("new", PARTS) == hashlib.sha256(b"".join(DATA)).hexdigest()


@pytest.fixture
def large(tmp_path):
    """A checkpoint whose shard has three parts of the smallest size that S3 joins."""
    params = [(f"w{i}", torch.nn.Parameter(torch.zeros(1024, 1024))) for i in range(3)]
    optimizer = LUMA(params, seed=0)
    for _, param in params:
        param.grad = torch.randn_like(param)
    optimizer.step()
    checkpoint.save(tmp_path / "large", optimizer=optimizer, compression="none")
    return tmp_path / "large"


@pytest.fixture
def pushing(bucket, serving, uploader_of):
    """Sends to a server over a place of its own in a bucket."""
    place = f"{bucket}/joined/{secrets.token_hex(8)}"
    settings = Settings(root=place, allow_anonymous=True, part_bytes=MIN_PART_BYTES)
    with (
        serving(create_app(settings)) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60) as client,
    ):
        yield uploader_of(client), place


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Names of the parts that are read."""
    found: list[str] = []
    original = S3Store.read_range

    def noted(self, name, start, stop):
        if "/parts/" in self.url:
            found.append(name)
        return original(self, name, start, stop)

    monkeypatch.setattr(S3Store, "read_range", noted)
    return found


def test_parts_are_joined_by_the_store(pushing, large, reads) -> None:
    uploader, place = pushing
    assert uploader.push(large, "gpt", "1").status_code == 201
    assert checkpoint.verify(f"{place}/gpt/1").ok
    assert reads == []


def test_parts_that_another_server_received_are_read(pushing, large, reads, monkeypatch) -> None:
    uploader, place = pushing
    session = uploader.begin(large, "gpt", "1")
    uploader.send(session, large)
    monkeypatch.setattr(remote, "_hashes", RunningHashes())
    assert uploader.commit(session).status_code == 201
    assert checkpoint.verify(f"{place}/gpt/1").ok
    assert len(reads) >= 3


def test_parts_that_make_another_file_are_refused(pushing, large, check_problem) -> None:
    uploader, place = pushing
    session = uploader.begin(large, "gpt", "1")
    (name,) = [file["name"] for file in session["files"] if file["needed"]]
    uploader.send(session, large)
    data = (large / name).read_bytes()[: session["part_bytes"]]
    assert uploader.put(session, name, 1, data[::-1]).status_code == 204
    check_problem(uploader.commit(session), 422, "digest_mismatch")
    assert not checkpoint.exists(f"{place}/gpt/1")
    again = uploader.http.get(f"/v1/uploads/{session['id']}").json()
    assert [file["received"] for file in again["files"]] == [[]]
    uploader.send(again, large)
    assert uploader.commit(session).status_code == 201
    assert checkpoint.verify(f"{place}/gpt/1").ok


def test_a_manifest_of_another_file_is_refused_before_anything_is_there(
    pushing, large, check_problem, reads
) -> None:
    uploader, place = pushing
    session = uploader.begin(large, "gpt", "1")
    (file,) = [one for one in session["files"] if one["needed"]]
    for number, data in uploader.parts(large, file["name"], session["part_bytes"]):
        sent = data if number > 1 else bytes([data[0] ^ 1]) + data[1:]
        assert uploader.put(session, file["name"], number, sent).status_code == 204
    check_problem(uploader.commit(session), 422, "digest_mismatch")
    assert reads == []
    assert not checkpoint.exists(f"{place}/gpt/1")
