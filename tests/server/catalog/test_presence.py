"""A job is interrupted when its server is gone, and only then, whoever is asked."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import subprocess
import sys
import threading
import time

import httpx
import pytest

from luma_core import checkpoint
from luma_server import Settings
from luma_server.catalog import claims, presence
from luma_server.catalog.claims import CLAIM_NAME
from luma_server.catalog.place import Root
from luma_server.catalog.presence import Presence
from luma_server.jobs.queue import Jobs
from tests.serving import running_several

ASKED = 20
"""How often a server is asked for what must not change."""

ALIVE = """
import sys, time
from luma_server.catalog.place import Root
from luma_server.catalog.presence import Presence
here = Presence(Root(sys.argv[1]))
print(here.enter(), flush=True)
time.sleep(60)
"""


@pytest.fixture(params=["folder", "memory"])
def place(request, tmp_path, monkeypatch, optimizer) -> str:
    """A root with ``gpt/9``, over which servers give ten signs of life a second."""
    monkeypatch.setattr(claims, "_RENEWALS", 10 * presence.SILENT_SECONDS)
    where = str(tmp_path) if request.param == "folder" else f"memory://{tmp_path.name}"
    checkpoint.save(f"{where}/gpt/9", optimizer=optimizer())
    return where


def two_servers(place: str) -> contextlib.AbstractContextManager[list[httpx.Client]]:
    return running_several(Settings(root=place, allow_anonymous=True), 2)


def state_of(http: httpx.Client, job: dict) -> str:
    """What a server tells of a job's state."""
    state: str = http.get(f"/v1/jobs/{job['id']}").json()["state"]
    return state


def states_until(http: httpx.Client, job: dict, wanted: str) -> list[str]:
    """What a server tells of a job's state, one after the other, until it is as wanted."""
    found = [state_of(http, job)]
    while found[-1] != wanted:
        time.sleep(0.02)
        state = state_of(http, job)
        found += [state] * (found[-1] != state)
        assert state not in {"failed", "cancelled"}
    return found


def convert(http: httpx.Client, step: str) -> dict:
    body = {"format": "luma", "to": {"run": "new", "step": step}}
    job: dict = http.post("/v1/checkpoints/gpt/9/convert", json=body).json()
    return job


def test_a_job_that_waits_is_not_interrupted(place, worker) -> None:
    worker('{"done": 1, "total": 2}', ends=False)
    with two_servers(place) as (one, other):
        first, second = convert(one, "1"), convert(one, "2")
        states_until(other, first, "running")
        assert {state_of(other, second) for _ in range(ASKED)} == {"queued"}
        assert state_of(other, first) == "running"
        for job in (second, first):
            one.delete(f"/v1/jobs/{job['id']}")
        assert state_of(other, second) == "cancelled"


def test_a_job_whose_result_is_being_stored_is_not_interrupted(place, worker, monkeypatch) -> None:
    worker('{"ok": true}', ends=True)
    storing, stored = threading.Event(), threading.Event()

    def store_slowly(*_: object) -> None:
        storing.set()
        assert stored.wait(60)

    monkeypatch.setattr(Jobs, "_store_result", store_slowly)
    with two_servers(place) as (one, other):
        body = {"format": "adamw", "download": True}
        job = one.post("/v1/checkpoints/gpt/9/convert", json=body).json()
        try:
            assert storing.wait(60)
            states_until(other, job, "running")
            assert {state_of(other, job) for _ in range(ASKED)} == {"running"}
        finally:
            stored.set()
        assert states_until(other, job, "done") in (["running", "done"], ["done"])


def test_a_process_that_was_killed_is_gone_at_once(tmp_path) -> None:
    command = [sys.executable, "-c", ALIVE, str(tmp_path)]
    here = Presence(Root(tmp_path))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        server = process.stdout.readline().strip()
        try:
            assert here.is_there(server)
            here.sweep()
            assert here.is_there(server)
        finally:
            process.kill()
            process.wait()
        assert not here.is_there(server)
    assert (tmp_path / ".luma" / "servers" / server).exists()
    here.sweep()
    assert list((tmp_path / ".luma" / "servers").iterdir()) == []


def test_no_other_process_is_taken_for_the_server_of_a_job(root, worker) -> None:
    """Its number may live again, on this machine or, in a container, at the same moment."""
    worker('{"ok": true}', ends=True)
    with two_servers(str(root)) as (one, other):
        job = convert(one, "1")
        states_until(one, job, "done")
        path = root / ".luma" / "jobs" / job["id"] / "job.json"
        # What a server tells of its own job is stored a moment later.
        while (record := json.loads(path.read_text()))["job"]["state"] != "done":
            time.sleep(0.01)
        record["job"] |= {"state": "running", "finished": None}
        path.write_text(json.dumps(record))
        assert other.get(f"/v1/jobs/{job['id']}").json()["state"] == "running"
        # Only the server differs: all of this happens in the same process.
        path.write_text(json.dumps(record | {"server": "0" * 32}))
        assert other.get(f"/v1/jobs/{job['id']}").json()["error"] == "interrupted"
        old = {key: record[key] for key in ("job", "owner", "beat")}
        path.write_text(json.dumps(old))
        assert other.get(f"/v1/jobs/{job['id']}").json()["error"] == "interrupted"


def test_a_server_that_was_silent_shows_that_it_is_back(monkeypatch) -> None:
    monkeypatch.setattr(claims, "_RENEWALS", 10 * presence.SILENT_SECONDS)
    root = Root("memory://silent-server")
    here, there = Presence(root), Presence(root)
    server = here.enter()
    assert here.enter() == server
    assert there.is_there(server)
    claim = root.private("servers", server)
    claim.delete(CLAIM_NAME)
    assert not there.is_there(server)
    while not there.is_there(server):
        time.sleep(0.01)
        assert here.enter() == server
    here.leave()
    assert not there.is_there(server)
    assert claim.names() == []


def test_where_folders_cannot_be_locked_an_object_tells(tmp_path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    here, there = Presence(Root(tmp_path)), Presence(Root(tmp_path))
    server = here.enter()
    there.sweep()
    assert there.is_there(server)
    here.leave()
    assert not there.is_there(server)
    (tmp_path / ".luma" / "servers" / server).mkdir()
    assert not there.is_there(server)
