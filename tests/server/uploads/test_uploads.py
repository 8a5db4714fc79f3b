"""What is sent appears whole or not at all, in any order, as often as one likes."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from luma_core import checkpoint
from luma_server import Settings, create_app
from luma_server.http.tokens import create_token


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def uploads_left(root: Path) -> list[Path]:
    return [path for path in (root / ".luma" / "uploads").rglob("*") if path.is_file()]


def test_a_pushed_checkpoint_is_the_same_folder(uploader, root, source) -> None:
    session = uploader.begin(source, "new", "1")
    assert (session["state"], session["part_bytes"]) == ("open", 1024)
    assert len(session["files"]) == 2
    assert all(file["needed"] and file["received"] == [] for file in session["files"])
    assert not (root / "new").exists()
    uploader.send(session, source)
    assert uploader.http.get("/v1/checkpoints/new/1").status_code == 404
    answer = uploader.commit(session)
    assert answer.status_code == 201
    digest = checkpoint.open(source).manifest.digest
    assert answer.json() == {"run": "new", "step": "1", "digest": digest}
    assert files_of(root / "new" / "1") == files_of(source)
    assert checkpoint.verify(root / "new" / "1").ok
    listed = uploader.http.get("/v1/checkpoints?run=new").json()["items"]
    assert [entry["digest"] for entry in listed] == [digest]
    assert [path.name for path in uploads_left(root)] == ["session.json"]


def test_a_commit_may_be_repeated(uploader, root, source) -> None:
    session = uploader.begin(source, "new", "1")
    uploader.send(session, source)
    first, second = uploader.commit(session), uploader.commit(session)
    assert first.json() == second.json()
    assert second.status_code == 201
    state = uploader.http.get(f"/v1/uploads/{session['id']}").json()
    assert (state["state"], state["files"]) == ("committed", [])
    assert uploader.http.get("/v1/uploads").json() == {"items": []}


def test_an_upload_goes_on_after_the_server_was_restarted(
    uploader_of, settings, serving, root, source
) -> None:
    with (
        serving(create_app(settings)) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60) as http,
    ):
        first = uploader_of(http)
        session = first.begin(source, "new", "1")
        name = session["files"][0]["name"]
        parts = list(first.parts(source, name, 1024))
        assert len(parts) > 2
        for number, data in parts[1:]:
            first.put(session, name, number, data)
    with (
        serving(create_app(settings)) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60) as http,
    ):
        second = uploader_of(http)
        found = http.get(f"/v1/uploads/{session['id']}").json()
        assert found["files"][0]["received"] == [number for number, _ in parts[1:]]
        assert second.commit(session).json()["code"] == "upload_incomplete"
        second.send(found, source)
        assert second.commit(session).status_code == 201
    assert files_of(root / "new" / "1") == files_of(source)


def test_a_part_may_be_sent_again_and_replaced(uploader, root, source) -> None:
    session = uploader.begin(source, "new", "1")
    name = session["files"][0]["name"]
    parts = list(uploader.parts(source, name, 1024))
    assert uploader.put(session, name, 1, bytes(1024)).status_code == 204
    for number, data in (*parts, *parts[:1], *parts):
        assert uploader.put(session, name, number, data).status_code == 204
    uploader.send(session, source)
    assert uploader.commit(session).status_code == 201
    assert files_of(root / "new" / "1") == files_of(source)


def test_parts_that_are_not_what_they_say(uploader, root, source, check_problem) -> None:
    session = uploader.begin(source, "new", "1")
    name = session["files"][0]["name"]
    data = next(uploader.parts(source, name, 1024))[1]
    check_problem(uploader.put(session, name, 1, bytes(1024), of=data), 422, "digest_mismatch")
    check_problem(uploader.put(session, name, 1, data[:-1]), 422, "invalid_request")
    check_problem(uploader.put(session, name, 1, data + b"1"), 413, "too_large")
    check_problem(uploader.put(session, name, 999, data), 422, "invalid_request")
    check_problem(uploader.put(session, name, 0, data), 422, "invalid_request")
    check_problem(uploader.put(session, "other.bin", 1, data), 404, "file_not_found")
    check_problem(uploader.put(session, "luma.json", 1, data), 404, "file_not_found")
    path = f"/v1/uploads/{session['id']}/files/{name}/parts/1"
    check_problem(uploader.http.put(path, content=data), 422, "invalid_request")
    headers = {"Content-Digest": "sha-256=:bm8=:"}
    check_problem(uploader.http.put(path, content=data, headers=headers), 422, "invalid_request")
    check_problem(uploader.http.put(path, content=iter([data])), 411, "length_required")
    found = uploader.http.get(f"/v1/uploads/{session['id']}").json()
    assert found["files"][0]["received"] == []


def test_a_file_whose_whole_is_wrong_is_sent_again(uploader, root, source, check_problem) -> None:
    session = uploader.begin(source, "new", "1")
    uploader.send(session, source)
    name = session["files"][0]["name"]
    uploader.put(session, name, 1, bytes(1024))
    body = check_problem(uploader.commit(session), 422, "digest_mismatch")
    assert name in body["detail"]
    assert not (root / "new").exists()
    again = uploader.http.get(f"/v1/uploads/{session['id']}").json()
    assert [file["received"] == [] for file in again["files"]] == [True, False]
    uploader.send(again, source)
    assert uploader.commit(session).status_code == 201
    assert checkpoint.verify(root / "new" / "1").ok


def test_an_upload_without_manifest_takes_it_at_the_end(uploader, root, source) -> None:
    body = {"run": "new", "step": "1"}
    session = uploader.http.post("/v1/uploads", json=body).json()
    assert session["files"] == []
    names = sorted(path.name for path in source.iterdir() if path.name != "luma.json")
    for name in names:
        for number, data in uploader.parts(source, name, 1024):
            assert uploader.put(session, name, number, data).status_code == 204
    mark = b'{"step": 1}'
    uploader.put(session, "luma-step.json", 1, mark)
    uploader.put(session, "stray.bin", 1, b"stray")
    found = uploader.http.get(f"/v1/uploads/{session['id']}").json()
    assert [file["name"] for file in found["files"]] == sorted(
        [*names, "luma-step.json", "stray.bin"]
    )
    assert uploader.commit(session).json()["code"] == "invalid_request"
    text = (source / "luma.json").read_text()
    assert uploader.commit(session, manifest=text).status_code == 201
    assert files_of(root / "new" / "1") == {**files_of(source), "luma-step.json": mark}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_checkpoint_that_is_there(uploader, root, source, check_problem, overwrite) -> None:
    before = files_of(root / "gpt" / "9")
    body = {"run": "gpt", "step": "9", "manifest": (source / "luma.json").read_text()}
    answer = uploader.http.post("/v1/uploads", json={**body, "overwrite": overwrite})
    if not overwrite:
        check_problem(answer, 409, "checkpoint_exists")
        assert files_of(root / "gpt" / "9") == before
        return
    uploader.send(answer.json(), source)
    assert uploader.commit(answer.json()).status_code == 201
    assert files_of(root / "gpt" / "9") == files_of(source)


def test_a_checkpoint_with_the_same_file_names_is_replaced_whole(uploader, root, optimizer) -> None:
    other = root.parent / "other"
    checkpoint.save(other, optimizer=optimizer(21))
    assert files_of(other).keys() == files_of(root / "gpt" / "9").keys()
    assert uploader.push(other, "gpt", "9", overwrite=True).status_code == 201
    assert files_of(root / "gpt" / "9") == files_of(other)


def test_the_same_checkpoint_again_is_no_conflict(uploader, root, source) -> None:
    assert uploader.push(source, "new", "1").status_code == 201
    assert uploader.push(source, "new", "1").status_code == 201
    assert files_of(root / "new" / "1") == files_of(source)


def test_what_the_server_has_is_not_sent(uploader, root, source) -> None:
    assert uploader.push(source, "new", "1").status_code == 201
    session = uploader.begin(source, "new", "2")
    assert [file["needed"] for file in session["files"]] == [False, False]
    assert uploader.send(session, source) == 0
    name = session["files"][0]["name"]
    assert uploader.put(session, name, 1, b"x").json()["code"] == "file_not_found"
    assert uploader.http.delete("/v1/checkpoints/new/1").status_code == 204
    assert uploader.commit(session).status_code == 201
    assert files_of(root / "new" / "2") == files_of(source)


def test_what_the_server_has_is_read_again_first(uploader, root, source) -> None:
    assert uploader.push(source, "new", "1").status_code == 201
    damaged = max((root / "new" / "1").glob("*.safetensors"))
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    session = uploader.begin(source, "new", "2")
    assert [file["needed"] for file in session["files"]] == [False, True]
    assert uploader.send(session, source) == len(content)
    assert uploader.commit(session).status_code == 201
    assert checkpoint.verify(root / "new" / "2").ok


def test_a_published_file_is_never_written_to(uploader, root, source, monkeypatch) -> None:
    from luma_core.checkpoint.storage.local import LocalStore
    from luma_server.uploads import commit

    session = uploader.begin(source, "new", "1")
    uploader.send(session, source)
    publish = commit._publish

    def fail_late(*arguments):
        publish(*arguments)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(commit, "_publish", fail_late)
    assert uploader.commit(session).json()["code"] == "storage_error"
    monkeypatch.undo()
    assert not LocalStore(root / "new" / "1").names().count("luma.json")
    name = session["files"][0]["name"]
    before = (root / "new" / "1" / name).read_bytes()
    assert uploader.put(session, name, 1, bytes(1024)).status_code == 204
    assert (root / "new" / "1" / name).read_bytes() == before
    uploader.send(uploader.http.get(f"/v1/uploads/{session['id']}").json(), source)
    assert uploader.put(session, name, 1, before[:1024]).status_code == 204
    assert uploader.commit(session).status_code == 201
    assert checkpoint.verify(root / "new" / "1").ok


@pytest.mark.parametrize(
    "text", ["", "{}", "[" * 100_000, '{"manifest": {"version": 99}}', "\ud800"]
)
def test_manifests_that_cannot_be_taken(uploader, text) -> None:
    body = json.dumps({"run": "new", "step": "1", "manifest": text})
    headers = {"Content-Type": "application/json"}
    answer = uploader.http.post("/v1/uploads", content=body, headers=headers)
    assert answer.status_code == 422
    assert answer.json()["code"] in ("invalid_manifest", "invalid_request")


PLACES = [
    ("..", "1"),
    ("a/b", "1"),
    ("a", ".."),
    ("", "1"),
    ("a", "x" * 201),
    (".luma", "uploads"),
    ("C:", "1"),
    ("a", "b\x00"),
    ("é", "1"),
    ("/etc", "1"),
    ("a\\b", "1"),
]


def test_places_outside_the_root(uploader, source, check_problem) -> None:
    manifest = (source / "luma.json").read_text()
    for run, step in PLACES:
        body = {"run": run, "step": step, "manifest": manifest}
        check_problem(uploader.http.post("/v1/uploads", json=body), 400, "unsafe_name")


def test_a_session_that_is_given_up_leaves_nothing(uploader, root, source, check_problem) -> None:
    session = uploader.begin(source, "new", "1")
    uploader.send(session, source)
    assert [one["id"] for one in uploader.http.get("/v1/uploads").json()["items"]] == [
        session["id"]
    ]
    assert uploader.http.delete(f"/v1/uploads/{session['id']}").status_code == 204
    assert uploads_left(root) == []
    check_problem(uploader.commit(session), 404, "upload_not_found")
    check_problem(uploader.http.get(f"/v1/uploads/{'0' * 32}"), 404, "upload_not_found")
    check_problem(uploader.http.get("/v1/uploads/luma"), 404, "upload_not_found")


def test_sessions_expire_and_are_collected(settings, serving, uploader_of, root, source) -> None:
    from luma_server.application_state import ApplicationState

    app = create_app(replace(settings, session_seconds=1))
    with serving(app) as url, httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
        one = uploader_of(http)
        session = one.begin(source, "new", "1")
        one.send(session, source)
        state: ApplicationState = app.state.application
        assert state.sessions.sweep() == 0
        for path in (root / ".luma" / "uploads").glob("*/session.json"):
            path.write_text(path.read_text().replace('"expires": "20', '"expires": "19'))
        state.sessions._known.clear()
        assert http.get(f"/v1/uploads/{session['id']}").status_code == 404
        assert state.sessions.sweep() == 1
    assert uploads_left(root) == []


def test_limits_of_uploads(settings, serving, uploader_of, source, check_problem) -> None:
    limits = {"max_sessions": 1, "max_upload_bytes": 100, "upload_bytes_per_day": 1500}
    manifest = (source / "luma.json").read_text()
    body = {"run": "new", "step": "1", "manifest": manifest}
    app = create_app(replace(settings, **limits))
    with serving(app) as url, httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
        check_problem(http.post("/v1/uploads", json=body), 413, "too_large")
    app = create_app(replace(settings, **{**limits, "max_upload_bytes": 1 << 20}))
    with serving(app) as url, httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
        one = uploader_of(http)
        session = one.begin(source, "new", "1")
        body = check_problem(http.post("/v1/uploads", json=body), 429, "too_many_sessions")
        name = session["files"][0]["name"]
        (first, second) = list(one.parts(source, name, 1024))[:2]
        assert one.put(session, name, *first).status_code == 204
        answer = one.put(session, name, *second)
        check_problem(answer, 429, "quota_exceeded")
        assert int(answer.headers["Retry-After"]) > 80_000
    app = create_app(replace(settings, max_manifest_bytes=2048))
    with serving(app) as url, httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
        body = {"run": "new", "step": "1", "manifest": manifest}
        assert len(manifest) > 2048
        check_problem(http.post("/v1/uploads", json=body), 413, "too_large")


def test_who_may_only_read_writes_nothing(root, source, serving, check_problem, tmp_path) -> None:
    tokens = tmp_path / "tokens.json"
    _, token = create_token(tokens, name="reader", scope="read")
    body = {"run": "new", "step": "1", "manifest": (source / "luma.json").read_text()}
    headers = {"Authorization": f"Bearer {token}"}
    with (
        serving(create_app(Settings(root=root, tokens_file=tokens))) as url,
        httpx.Client(base_url=url, trust_env=False, headers=headers, timeout=60) as http,
    ):
        assert http.get("/v1/checkpoints").status_code == 200
        check_problem(http.post("/v1/uploads", json=body), 403, "forbidden")
        check_problem(http.delete("/v1/checkpoints/gpt/9"), 403, "forbidden")
        check_problem(http.put("/v1/checkpoints/gpt/9/pin"), 403, "forbidden")


def test_a_store_without_hard_links(uploader, root, source, monkeypatch) -> None:
    def refuse(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert uploader.push(source, "new", "1").status_code == 201
    assert files_of(root / "new" / "1") == files_of(source)


def test_only_the_checkpoint_that_is_meant_is_replaced_or_deleted(
    uploader, root, source, check_problem, monkeypatch
) -> None:
    from luma_server.uploads import commit

    other = "0" * 64
    digest = uploader.http.get("/v1/checkpoints/gpt/9/info").json()["digest"]
    body = {"run": "gpt", "step": "9", "manifest": (source / "luma.json").read_text()}
    body |= {"overwrite": True, "expected": other}
    check_problem(uploader.http.post("/v1/uploads", json=body), 409, "checkpoint_changed")
    path = "/v1/checkpoints/gpt/9"
    answer = uploader.http.delete(path, headers={"If-Match": f'"{other}"'})
    check_problem(answer, 409, "checkpoint_changed")
    session = uploader.begin(source, "gpt", "9", overwrite=True, expected=digest)
    uploader.send(session, source)
    other_push = uploader.push(root / "gpt" / "10", "gpt", "9", overwrite=True)
    assert other_push.status_code == 201
    check_problem(uploader.commit(session), 409, "checkpoint_changed")
    digest = uploader.http.get(f"{path}/info").json()["digest"]
    session = uploader.begin(source, "gpt", "9", overwrite=True, expected=digest)
    uploader.send(session, source)

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(commit, "_must_go_first", lambda *_: True)
    with monkeypatch.context() as patch:
        patch.setattr(commit, "_publish", fail)
        check_problem(uploader.commit(session), 503, "storage_error")
    assert uploader.http.get(path).status_code == 404
    assert uploader.commit(session).status_code == 201
    etag = uploader.http.get(path).headers["ETag"]
    assert uploader.http.delete(path, headers={"If-Match": etag}).status_code == 204
