"""Summaries of manifests that are read without building them."""

from __future__ import annotations

import hashlib
import json

import pytest

from luma_core import checkpoint
from luma_core.checkpoint.format.manifest import canonical_json
from luma_server.catalog.summary import quick_summary, summary_of


def sealed(body: dict) -> bytes:
    """A document with the right checksum, whatever is in it."""
    digest = hashlib.sha256(canonical_json(body)).hexdigest()
    return canonical_json({"checksum": f"sha256:{digest}", "manifest": body})


@pytest.fixture(params=["root/gpt/10", "source"])
def document(request, originals) -> bytes:
    return (originals / request.param / "luma.json").read_bytes()


def test_it_is_what_the_whole_manifest_gives(originals, document):
    manifest = checkpoint.format.parse_manifest(document)
    assert quick_summary("gpt", "10", document) == summary_of("gpt", "10", manifest)


def test_every_changed_byte_is_seen(document):
    for at in range(0, len(document), max(1, len(document) // 400)):
        damaged = document[:at] + bytes([document[at] ^ 1]) + document[at + 1 :]
        assert quick_summary("gpt", "10", damaged) is None, at


@pytest.mark.parametrize("size", [0, 1, 90, 100, -1, -2])
def test_a_part_of_a_document_is_none(document, size):
    assert quick_summary("gpt", "10", document[:size]) is None


def change_version(body: dict) -> None:
    body["version"] = 99


def change_codec(body: dict) -> None:
    body["parameters"][0]["codecs"]["exp_avg"]["name"] = "unheard"


def change_name(body: dict) -> None:
    body["files"][0]["name"] = "../../etc/passwd"


def change_size(body: dict) -> None:
    body["files"][0]["bytes"] = -1


def change_type(body: dict) -> None:
    body["summary"]["elements"] = "many"


def leave_out(body: dict) -> None:
    del body["algorithm"]


@pytest.mark.parametrize(
    "change", [change_version, change_codec, change_name, change_size, change_type, leave_out]
)
def test_what_cannot_be_used_is_left_to_the_whole_reading(document, change):
    body = json.loads(document)["manifest"]
    assert quick_summary("gpt", "10", sealed(body)) is not None
    change(body)
    assert quick_summary("gpt", "10", sealed(body)) is None


def test_strings_that_look_like_line_ends_do_not_change_the_digest(document):
    body = json.loads(document)["manifest"]
    body["extra"] = {"a\n b": "c\n  d", "": "\\n \u2028 "}
    found = quick_summary("gpt", "10", sealed(body))
    manifest = checkpoint.format.parse_manifest(sealed(body))
    assert found is not None
    assert found.info.digest == manifest.digest
