"""A job is interrupted when its server is gone, and only then, whoever is asked."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import subprocess
import sys
import time

import httpx
import pytest

from luma_core import checkpoint
from luma_server import Settings
from luma_server.catalog import presence
from luma_server.catalog.claims import CLAIM_NAME
from luma_server.catalog.place import Root
from luma_server.catalog.presence import Presence
from luma_server.jobs.queue import Jobs
from tests.serving import running_several

SILENT_SECONDS = 1.0

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
    """A root with ``gpt/9``, where a server may be silent for a second."""
    monkeypatch.setattr(presence, "SILENT_SECONDS", SILENT_SECONDS)
    where = str(tmp_path) if request.param == "folder" else f"memory://{tmp_path.name}"
    checkpoint.save(f"{where}/gpt/9", optimizer=optimizer())
    return where


def two_servers(place: str) -> contextlib.AbstractContextManager[list[httpx.Client]]:
    return running_several(Settings(root=place, allow_anonymous=True), 2)


def states_meanwhile(http: httpx.Client, job: dict, seconds: float) -> list[str]:
    """What a server tells of a job's state, one after the other, for some time."""
    found: list[str] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        state = http.get(f"/v1/jobs/{job['id']}").json()["state"]
        found += [state] * (found[-1:] != [state])
        time.sleep(0.05)
    return found


def convert(http: httpx.Client, step: str) -> dict:
    body = {"format": "luma", "to": {"run": "new", "step": step}}
    job: dict = http.post("/v1/checkpoints/gpt/9/convert", json=body).json()
    return job


def test_a_job_that_waits_is_not_interrupted(place, worker) -> None:
    worker('{"done": 1, "total": 2}', ends=False)
    with two_servers(place) as (one, other):
        first, second = convert(one, "1"), convert(one, "2")
        assert states_meanwhile(other, second, 1.5 * SILENT_SECONDS) == ["queued"]
        assert other.get(f"/v1/jobs/{first['id']}").json()["state"] == "running"
        for job in (second, first):
            one.delete(f"/v1/jobs/{job['id']}")
        assert states_meanwhile(other, second, 0.1) == ["cancelled"]


def test_a_job_whose_result_is_being_stored_is_not_interrupted(place, worker, monkeypatch) -> None:
    worker('{"ok": true}', ends=True)
    monkeypatch.setattr(Jobs, "_store_result", lambda *_: time.sleep(1.5 * SILENT_SECONDS))
    with two_servers(place) as (one, other):
        body = {"format": "adamw", "download": True}
        job = one.post("/v1/checkpoints/gpt/9/convert", json=body).json()
        found = states_meanwhile(other, job, 2.2 * SILENT_SECONDS)
    assert found in (["queued", "running", "done"], ["running", "done"])


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
        until_ended = states_meanwhile(one, job, 2)
        assert until_ended[-1] == "done"
        path = root / ".luma" / "jobs" / job["id"] / "job.json"
        record = json.loads(path.read_text())
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
    monkeypatch.setattr(presence, "SILENT_SECONDS", SILENT_SECONDS)
    root = Root("memory://silent-server")
    here, there = Presence(root), Presence(root)
    server = here.enter()
    assert here.enter() == server
    assert there.is_there(server)
    claim = root.private("servers", server)
    claim.delete(CLAIM_NAME)
    assert not there.is_there(server)
    time.sleep(0.5 * SILENT_SECONDS)
    assert here.enter() == server
    assert there.is_there(server)
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
