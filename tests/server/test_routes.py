"""What the routes answer."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from luma_core import __version__, checkpoint, stats
from luma_server import Settings, create_app


def test_health(http) -> None:
    response = http.get("/healthz")
    assert response.status_code == 200
    assert response.json() == {"status": "ok", "version": __version__}


def test_listing_holds_what_the_manifests_say_in_natural_order(http, root) -> None:
    entries = http.get("/v1/checkpoints").json()["items"]
    found = [(entry["run"], entry["step"]) for entry in entries]
    assert found == [("bert", "final"), ("gpt", "9"), ("gpt", "10")]
    manifest = checkpoint.open(root / "gpt" / "9").manifest
    assert entries[1] == {
        "run": "gpt",
        "step": "9",
        "created": manifest.created,
        "algorithm": "luma",
        "optimizer_step": 1,
        "parameters": 3,
        "elements": 3 * 256,
        "state_bytes": manifest.summary.state_bytes,
        "stored_bytes": manifest.summary.stored_bytes,
        "bytes": sum(file.bytes for file in manifest.files),
        "adamw_bytes": 8 * 3 * 256,
        "digest": manifest.digest,
        "pinned": False,
        "labels": {},
        "error": None,
    }


def test_listing_ignores_what_is_not_a_committed_checkpoint(http, root) -> None:
    (root / "gpt" / "11").mkdir()
    (root / "gpt" / "11" / "optimizer-00001-of-00001.safetensors").write_bytes(b"half")
    (root / "gpt" / "12" / "luma.json").mkdir(parents=True)
    (root / "gpt" / "notes.txt").write_text("hello")
    (root / "luma.json").write_text("{}")
    (root / ".hidden" / "1").mkdir(parents=True)
    (root / ".hidden" / "1" / "luma.json").write_text("{}")
    (root / "a b" / "1").mkdir(parents=True)
    (root / "a b" / "1" / "luma.json").write_text("{}")
    entries = http.get("/v1/checkpoints").json()["items"]
    assert [entry["step"] for entry in entries] == ["final", "9", "10"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\x00", b'{"manifest": {"version": 99}}', b"[" * 100_000, b'{"manifest": 3}'],
    ids=["empty", "cut", "binary", "newer version", "deep", "no manifest"],
)
def test_a_corrupt_manifest_is_listed_with_its_error(http, root, content) -> None:
    (root / "gpt" / "9" / "luma.json").write_bytes(content)
    entries = http.get("/v1/checkpoints").json()["items"]
    assert [entry["error"] is None for entry in entries] == [True, False, True]
    bad = entries[1]
    assert bad["error"].startswith("gpt/9/luma.json: ")
    assert str(root) not in bad["error"]
    known = ("run", "step", "error", "pinned", "labels")
    assert {value for key, value in bad.items() if key not in known} == {None}


def test_listing_follows_changes(http, root, optimizer) -> None:
    first = http.get("/v1/checkpoints").json()["items"][1]
    checkpoint.save(root / "gpt" / "9", optimizer=optimizer(7), overwrite=True)
    checkpoint.save(root / "gpt" / "11", optimizer=optimizer(8))
    (root / "bert" / "final" / "luma.json").unlink()
    entries = http.get("/v1/checkpoints").json()["items"]
    assert [entry["step"] for entry in entries] == ["9", "10", "11"]
    assert entries[0]["digest"] != first["digest"]


def test_an_empty_root_has_no_checkpoints(tmp_path, serving) -> None:
    import httpx

    with serving(create_app(Settings(root=tmp_path, allow_anonymous=True))) as url:
        response = httpx.get(f"{url}/v1/checkpoints", trust_env=False, timeout=60)
    assert response.json() == {"items": [], "next_cursor": None}


def test_manifest_is_the_file_byte_for_byte(http, root) -> None:
    response = http.get("/v1/checkpoints/gpt/10")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/json"
    assert response.content == (root / "gpt" / "10" / "luma.json").read_bytes()


def test_stats_equal_those_computed_here(http, root) -> None:
    with checkpoint.open(root / "gpt" / "10") as opened:
        expected = stats.compute(opened)
        chosen = stats.compute(opened, pattern="h.*")
    plain = http.get("/v1/checkpoints/gpt/10/stats").json()
    assert plain == json.loads(json.dumps(asdict(expected)))
    some = http.get("/v1/checkpoints/gpt/10/stats", params={"param": "h.*"}).json()
    assert some == json.loads(json.dumps(asdict(chosen)))
    assert [entry["name"] for entry in some["parameters"]] == ["h.0.w", "h.1.w"]
    none = http.get("/v1/checkpoints/gpt/10/stats", params={"param": "nothing"}).json()
    assert none["total"]["parameters"] == 0


@pytest.mark.parametrize("path", ["/v1/checkpoints/gpt/9", "/v1/checkpoints/gpt/9/stats?param=h*"])
def test_etag_spares_the_body_until_the_checkpoint_changes(http, root, optimizer, path) -> None:
    first = http.get(path)
    etag = first.headers["ETag"]
    assert etag.startswith('"')
    assert first.headers["Cache-Control"] == "no-cache"
    for sent in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = http.get(path, headers={"If-None-Match": sent})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["ETag"] == etag
    assert http.get(path, headers={"If-None-Match": '"other"'}).content == first.content
    checkpoint.save(root / "gpt" / "9", optimizer=optimizer(7), overwrite=True)
    changed = http.get(path, headers={"If-None-Match": etag})
    assert changed.status_code == 200
    assert changed.headers["ETag"] != etag
    assert changed.content != first.content


def test_etags_of_different_statistics_differ(http) -> None:
    paths = ["gpt/9", "gpt/9/stats", "gpt/9/stats?param=h*", "gpt/9/stats?param=", "gpt/10/stats"]
    tags = {http.get(f"/v1/checkpoints/{path}").headers["ETag"] for path in paths}
    assert len(tags) == len(paths)


def test_openapi_describes_answers_and_problems(http) -> None:
    schema = http.get("/openapi.json").json()
    models = {
        "/healthz": "Health",
        "/v1/checkpoints": "CheckpointPage",
        "/v1/checkpoints/{run}/{step}": "ManifestDocument",
        "/v1/checkpoints/{run}/{step}/stats": "CheckpointStats",
    }
    for path, model in models.items():
        responses = schema["paths"][path]["get"]["responses"]
        good = responses["200"]["content"]["application/json"]["schema"]
        assert good == {"$ref": f"#/components/schemas/{model}"}
        problem = responses["default"]["content"]
        assert list(problem) == ["application/problem+json"]
        assert problem["application/problem+json"]["schema"]["$ref"].endswith("/Problem")


def test_documentation_pages_that_load_foreign_scripts_are_off(http) -> None:
    assert http.get("/docs").status_code == 404
    assert http.get("/redoc").status_code == 404


def test_a_request_keeps_its_id_or_gets_one(http) -> None:
    given = http.get("/healthz", headers={"X-Request-ID": "abc-1.2_3"})
    assert given.headers["X-Request-ID"] == "abc-1.2_3"
    for bad in ("a b", "x" * 129, '"><script>'):
        made = http.get("/nothing", headers={"X-Request-ID": bad})
        assert made.headers["X-Request-ID"] != bad
        assert made.json()["request_id"] == made.headers["X-Request-ID"]
    ids = {http.get("/healthz").headers["X-Request-ID"] for _ in range(5)}
    assert len(ids) == 5


def test_an_unreadable_run_does_not_break_the_listing(http, root, monkeypatch, caplog) -> None:
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "gpt":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    entries = http.get("/v1/checkpoints").json()["items"]
    assert [entry["run"] for entry in entries] == ["bert"]
    assert any("Permission denied" in record.getMessage() for record in caplog.records)
