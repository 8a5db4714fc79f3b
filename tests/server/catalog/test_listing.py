"""Listings: filters, pages, pins and labels, on folders and elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import fsspec
import httpx
import pytest

from luma_core import checkpoint
from luma_server import Settings, create_app
from luma_server.catalog.annotations import Annotations
from luma_server.catalog.checkpoints import Catalog
from luma_server.catalog.place import Root


@pytest.fixture
def memory(optimizer) -> Iterator[str]:
    """A root that is no local folder, with ``gpt/{9,10}`` and ``bert/final``."""
    root = "memory://served/here"
    for place, seed in (("gpt/10", 1), ("gpt/9", 2), ("bert/final", 3)):
        checkpoint.save(f"{root}/{place}", optimizer=optimizer(seed))
    yield root
    fsspec.filesystem("memory").rm("/served", recursive=True)


@pytest.fixture(params=["folder", "memory"])
def client(request, serving):
    """Asks a server to which everybody may write."""
    root = request.getfixturevalue("root" if request.param == "folder" else "memory")
    settings = Settings(root=root, allow_anonymous=True, part_bytes=1024, list_cache_seconds=60)
    with (
        serving(create_app(settings)) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60) as client,
    ):
        yield client


def names(client: httpx.Client, **query: object) -> list[str]:
    answer = client.get("/v1/checkpoints", params=query)
    assert answer.status_code == 200, answer.text
    return [f"{entry['run']}/{entry['step']}" for entry in answer.json()["items"]]


def test_filters(client) -> None:
    assert names(client) == ["bert/final", "gpt/9", "gpt/10"]
    assert names(client, run="gpt") == ["gpt/9", "gpt/10"]
    assert names(client, run="gp") == names(client, run="..") == []
    assert names(client, prefix="gpt/1") == ["gpt/10"]
    assert names(client, optimizer="luma") == names(client)
    assert names(client, optimizer="adam") == []
    assert names(client, min_step=1, max_step=1) == names(client)
    assert names(client, min_step=2) == names(client, max_step=0) == []


def test_pages(client) -> None:
    found, cursor = [], None
    while True:
        query = {"limit": 1, **({"cursor": cursor} if cursor else {})}
        page = client.get("/v1/checkpoints", params=query).json()
        found += [entry["step"] for entry in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert found == ["final", "9", "10"]


def test_a_page_goes_on_where_its_last_checkpoint_was_deleted(client) -> None:
    page = client.get("/v1/checkpoints", params={"limit": 2}).json()
    assert client.delete("/v1/checkpoints/gpt/9").status_code == 204
    assert names(client, cursor=page["next_cursor"]) == ["gpt/10"]


@pytest.mark.parametrize(
    "query",
    [
        {"limit": 0},
        {"limit": 1001},
        {"limit": "x"},
        {"cursor": "x"},
        {"cursor": "W10="},
        {"cursor": "WzEsMl0="},
        {"min_step": -1},
        {"min_step": 1 << 64},
        {"pinned": "maybe"},
        {"prefix": "x" * 402},
    ],
)
def test_queries_that_cannot_work(client, check_problem, query) -> None:
    check_problem(client.get("/v1/checkpoints", params=query), 422, "invalid_request")


def test_runs(client) -> None:
    assert client.get("/v1/runs").json() == {
        "items": [
            {"run": "bert", "checkpoints": 1, "latest_step": "final"},
            {"run": "gpt", "checkpoints": 2, "latest_step": "10"},
        ]
    }


def test_pins_and_labels(client, check_problem) -> None:
    path = "/v1/checkpoints/gpt/9"
    assert client.put(f"{path}/pin").status_code == 204
    labels = {"kind": "best", "note": "a b: c"}
    info = client.put(f"{path}/labels", json={"labels": labels}).json()
    assert (info["pinned"], info["labels"]) == (True, labels)
    assert client.get(f"{path}/info").json() == info
    assert names(client, pinned=True) == names(client, label="kind") == ["gpt/9"]
    assert names(client, label="kind:best") == names(client, label="note:a b: c") == ["gpt/9"]
    assert names(client, label="kind:worst") == []
    assert names(client, pinned=False) == ["bert/final", "gpt/10"]
    check_problem(client.delete(path), 409, "pinned")
    assert client.get(path).status_code == 200
    assert client.delete(f"{path}/pin").status_code == 204
    assert client.delete(path).status_code == 204
    check_problem(client.get(path), 404, "checkpoint_not_found")
    check_problem(client.delete(path), 404, "checkpoint_not_found")
    check_problem(client.put(f"{path}/pin"), 404, "checkpoint_not_found")
    assert names(client) == ["bert/final", "gpt/10"]


def test_a_deleted_checkpoint_takes_its_labels_along(client, uploader_of, source) -> None:
    uploader = uploader_of(client)
    assert uploader.push(source, "new", "1").status_code == 201
    client.put("/v1/checkpoints/new/1/labels", json={"labels": {"a": "b"}})
    client.delete("/v1/checkpoints/new/1")
    assert uploader.push(source, "new", "1").status_code == 201
    assert client.get("/v1/checkpoints/new/1/info").json()["labels"] == {}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"labels": []},
        {"labels": {"": "x"}},
        {"labels": {"a": "x" * 257}},
        {"labels": {"a": 1}},
        {"labels": {f"k{i}": "" for i in range(65)}},
        {"labels": {"a b": "x"}},
        {"labels": {}, "x": 1},
    ],
)
def test_labels_that_cannot_be(client, check_problem, body) -> None:
    answer = client.put("/v1/checkpoints/gpt/9/labels", json=body)
    check_problem(answer, 422, "invalid_request")


def test_what_is_pushed_is_listed_at_once_and_can_be_read(client, uploader_of, source) -> None:
    assert names(client, run="new") == []
    uploader = uploader_of(client)
    session = uploader.begin(source, "new", "1")
    uploader.send(session, source)
    found = client.get(f"/v1/uploads/{session['id']}").json()
    assert all(file["received"] for file in found["files"])
    assert uploader.commit(session).status_code == 201
    assert names(client, run="new") == ["new/1"]
    for file in client.get("/v1/checkpoints/new/1/files").json()["items"]:
        path = f"/v1/checkpoints/new/1/files/{file['name']}"
        data = (source / file["name"]).read_bytes()
        assert client.get(path).content == data
        assert client.get(path, headers={"Range": "bytes=7-99"}).content == data[7:100]
    again = uploader.begin(source, "new", "2")
    assert [file["needed"] for file in again["files"]] == [False, False]
    assert uploader.commit(again).status_code == 201
    assert uploader.push(source, "gpt", "9", overwrite=True).status_code == 201
    assert client.get("/v1/checkpoints/gpt/9").content == (source / "luma.json").read_bytes()
    assert client.get("/v1/checkpoints/gpt/9/stats").status_code == 200
    assert client.get("/v1/uploads").json() == {"items": []}


def test_wholes_that_are_wrong_are_never_published(client, uploader_of, source) -> None:
    uploader = uploader_of(client)
    session = uploader.begin(source, "new", "1")
    uploader.send(session, source)
    name = session["files"][0]["name"]
    uploader.put(session, name, 1, bytes(1024))
    assert uploader.commit(session).json()["code"] == "digest_mismatch"
    assert names(client, run="new") == []
    uploader.send(client.get(f"/v1/uploads/{session['id']}").json(), source)
    assert uploader.commit(session).status_code == 201


def test_changes_of_many_at_once_are_all_kept(root) -> None:
    servers = [Annotations(Root(root), 0) for _ in range(4)]

    def label(server: Annotations, number: int) -> None:
        server.label("gpt", f"step-{number}", {"n": str(number)})

    threads = [
        threading.Thread(target=label, args=(server, 4 * i + j))
        for i, server in enumerate(servers)
        for j in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(servers[0].of_run("gpt")) == 16


def test_other_places_are_listed_anew_after_a_while(memory, optimizer) -> None:
    catalog = Catalog(memory, 0.05)
    try:
        assert len(catalog.list()) == 3
        checkpoint.save(f"{memory}/gpt/11", optimizer=optimizer(5))
        deadline = time.monotonic() + 10
        while len(catalog.list()) < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert [info.step for info in catalog.list()] == ["final", "9", "10", "11"]
    finally:
        catalog.close()


def test_a_delta_checkpoint_keeps_its_base(client, request, optimizer, check_problem) -> None:
    place = client.get("/v1/checkpoints/gpt/9/info")
    assert place.status_code == 200
    if not hasattr(checkpoint, "flatten"):
        pytest.skip("this version has no delta checkpoints")
    root = "memory://served/here"
    if "folder" in request.node.name:
        root = str(request.getfixturevalue("root"))
    checkpoint.save(f"{root}/gpt/11", optimizer=optimizer(1), base=f"{root}/gpt/10")
    client.get("/v1/checkpoints")
    manifest = checkpoint.open(f"{root}/gpt/11").manifest
    if manifest.base is None:
        pytest.skip("the delta was not smaller")
    check_problem(client.delete("/v1/checkpoints/gpt/10"), 409, "in_use")
    assert client.delete("/v1/checkpoints/gpt/11").status_code == 204
    assert client.delete("/v1/checkpoints/gpt/10").status_code == 204
