"""Conversions end whole, or as failed, cancelled or interrupted, and leave nothing half-done."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import torch

from luma_core import checkpoint
from luma_core.errors import StorageError
from luma_server import create_app
from luma_server.jobs.queue import Jobs
from luma_server.jobs.records import JobRecords


def wait_for(http: httpx.Client, job: dict, *states: str) -> dict:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = http.get(f"/v1/jobs/{job['id']}").json()
        if found["state"] in states:
            return found
        time.sleep(0.05)
    raise AssertionError(found)


ENDED = ("done", "failed", "cancelled")


def test_a_conversion_to_a_checkpoint_and_one_to_a_file(uploader, root) -> None:
    http = uploader.http
    body = {"format": "luma", "codec": "fp32", "to": {"run": "wide", "step": "9"}}
    answer = http.post("/v1/checkpoints/gpt/9/convert", json=body)
    assert answer.status_code == 202
    job = answer.json()
    assert (job["state"], job["run"], job["step"]) == ("queued", "gpt", "9")
    body = {"format": "adamw", "download": True}
    second = http.post("/v1/checkpoints/gpt/9/convert", json=body).json()
    done = wait_for(http, job, *ENDED)
    assert (done["state"], done["error"]) == ("done", None)
    assert done["to"] == {"run": "wide", "step": "9"}
    assert http.get("/v1/checkpoints/wide/9/info").json()["elements"] == 768
    assert checkpoint.verify(root / "wide" / "9").ok
    assert http.get(f"/v1/jobs/{job['id']}/result").json()["code"] == "job_not_finished"
    wait_for(http, second, "done")
    result = http.get(f"/v1/jobs/{second['id']}/result")
    (root.parent / "result.pt").write_bytes(result.content)
    loaded = torch.load(root.parent / "result.pt", weights_only=True)
    assert len(loaded["state"]) == 3
    part = http.get(f"/v1/jobs/{second['id']}/result", headers={"Range": "bytes=1-3"})
    assert (part.status_code, part.content) == (206, result.content[1:4])
    listed = http.get("/v1/jobs").json()["items"]
    assert [one["id"] for one in listed] == [second["id"], job["id"]]
    gone = http.delete(f"/v1/jobs/{job['id']}").json()
    assert gone["state"] == "done"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"format": "luma"}, 422, "invalid_request"),
        ({"format": "luma", "download": True}, 422, "invalid_request"),
        ({"format": "adamw", "to": {"run": "a", "step": "1"}}, 422, "invalid_request"),
        ({"format": "dcp", "download": True}, 422, "invalid_request"),
        ({"format": "luma", "to": {"run": "..", "step": "1"}}, 400, "unsafe_name"),
        ({"format": "luma", "to": {"run": "gpt", "step": "10"}}, 409, "checkpoint_exists"),
        ({"format": "luma", "codec": "x", "to": {"run": "a", "step": "1"}}, 422, "invalid_request"),
    ],
)
def test_conversions_that_cannot_be(uploader, check_problem, body, status, code) -> None:
    answer = uploader.http.post("/v1/checkpoints/gpt/9/convert", json=body)
    check_problem(answer, status, code)


def test_jobs_that_are_not_there(uploader, check_problem) -> None:
    body = {"format": "adamw", "download": True}
    answer = uploader.http.post("/v1/checkpoints/gpt/404/convert", json=body)
    check_problem(answer, 404, "checkpoint_not_found")
    for job_id in ("0" * 32, "x", "luma"):
        check_problem(uploader.http.get(f"/v1/jobs/{job_id}"), 404, "job_not_found")
        check_problem(uploader.http.get(f"/v1/jobs/{job_id}/result"), 404, "job_not_found")


def test_a_damaged_checkpoint_fails_and_hides_paths(uploader, root) -> None:
    shard = next((root / "gpt" / "9").glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-10] ^= 1
    shard.write_bytes(content)
    body = {"format": "luma", "to": {"run": "new", "step": "1"}}
    job = uploader.http.post("/v1/checkpoints/gpt/9/convert", json=body).json()
    ended = wait_for(uploader.http, job, *ENDED)
    assert ended["state"] == "failed"
    assert shard.name in ended["error"]
    assert str(root) not in ended["error"]
    assert not (root / "new" / "1" / "luma.json").exists()


@pytest.fixture
def slow_worker(worker) -> None:
    worker('{"done": 1, "total": 2}', ends=False)


@pytest.fixture
def quick_worker(worker) -> None:
    worker('{"ok": true}', ends=True)


TO_NEW = {"format": "luma", "to": {"run": "new", "step": "1"}}


def test_a_worker_that_dies(uploader, worker) -> None:
    worker('{"done": 1, "total": 2}', ends=True)
    job = uploader.http.post("/v1/checkpoints/gpt/9/convert", json=TO_NEW).json()
    ended = wait_for(uploader.http, job, *ENDED)
    assert (ended["state"], ended["error"]) == ("failed", "the worker ended with code 0.")
    assert (ended["done_bytes"], ended["total_bytes"]) == (1, 2)


def test_jobs_wait_their_turn_and_can_be_cancelled(
    root, settings, serving, slow_worker, check_problem
) -> None:
    body = {"format": "luma", "to": {"run": "new", "step": "1"}}
    app = create_app(replace(settings, max_queued_jobs=1))
    with serving(app) as url, httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
        path = "/v1/checkpoints/gpt/9/convert"
        first = http.post(path, json=body).json()
        assert wait_for(http, first, "running")["started"]
        second = http.post(path, json=body).json()
        check_problem(http.post(path, json=body), 429, "too_many_jobs")
        text = http.get("/metrics").text
        assert 'luma_jobs{state="running"} 1.0' in text
        assert http.get(f"/v1/jobs/{second['id']}").json()["state"] == "queued"
        assert http.delete(f"/v1/jobs/{second['id']}").json()["state"] == "cancelled"
        assert http.delete(f"/v1/jobs/{first['id']}").json()["state"] == "cancelled"
        assert http.get(f"/v1/jobs/{first['id']}").json()["finished"]
    assert not (root / "new").exists()


def test_a_server_that_stops_leaves_interrupted_jobs(root, settings, serving, slow_worker) -> None:
    body = TO_NEW
    with (
        serving(create_app(settings)) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60) as http,
    ):
        job = http.post("/v1/checkpoints/gpt/9/convert", json=body).json()
        wait_for(http, job, "running")
    with (
        serving(create_app(settings)) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60) as http,
    ):
        found = http.get(f"/v1/jobs/{job['id']}").json()
    assert (found["state"], found["error"]) == ("failed", "interrupted")
    assert not (root / "new").exists()


@pytest.mark.parametrize("how", ["stops", "cancels"])
def test_what_was_published_before_the_end_is_done(
    root, settings, serving, slow_worker, optimizer, how
) -> None:
    with (
        serving(create_app(settings)) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60) as http,
    ):
        job = http.post("/v1/checkpoints/gpt/9/convert", json=TO_NEW).json()
        wait_for(http, job, "running")
        checkpoint.save(root / "new" / "1", optimizer=optimizer())
        if how == "cancels":
            assert http.delete(f"/v1/jobs/{job['id']}").json()["state"] == "done"
    with (
        serving(create_app(settings)) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60) as http,
    ):
        found = http.get(f"/v1/jobs/{job['id']}").json()
    assert (found["state"], found["error"]) == ("done", None)
    assert checkpoint.verify(root / "new" / "1").ok


def test_what_was_published_while_the_record_was_written_is_done(
    root, settings, serving, slow_worker, optimizer, monkeypatch
) -> None:
    ending = threading.Event()
    write, end = JobRecords.write, Jobs._end

    def slow_write(self, job_id, latest) -> None:
        if latest().job.state == "running":
            assert ending.wait(60)
        write(self, job_id, latest)

    def tell_and_end(self, *arguments) -> None:
        end(self, *arguments)
        ending.set()

    monkeypatch.setattr(JobRecords, "write", slow_write)
    monkeypatch.setattr(Jobs, "_end", tell_and_end)
    with (
        serving(create_app(settings)) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60) as http,
    ):
        job = http.post("/v1/checkpoints/gpt/9/convert", json=TO_NEW).json()
        wait_for(http, job, "running")
        checkpoint.save(root / "new" / "1", optimizer=optimizer())
        assert http.delete(f"/v1/jobs/{job['id']}").json()["state"] == "done"


@pytest.mark.parametrize("store", ["slow", "broken"])
def test_how_a_job_ended_is_told_once_it_is_stored(
    root, settings, serving, quick_worker, monkeypatch, store
) -> None:
    writing, go_on = threading.Event(), threading.Event()
    write = JobRecords.write

    def last_write(self, job_id, latest) -> None:
        if latest().job.state == "done":
            writing.set()
            assert go_on.wait(60)
            if store == "broken":
                raise StorageError("no room.")
        write(self, job_id, latest)

    monkeypatch.setattr(JobRecords, "write", last_write)
    with (
        serving(create_app(settings)) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60) as http,
    ):
        job = http.post("/v1/checkpoints/gpt/9/convert", json=TO_NEW).json()
        assert writing.wait(60)
        assert http.get(f"/v1/jobs/{job['id']}").json()["state"] == "running"
        threading.Timer(0.1, go_on.set).start()
        # Too late to end it: that waits, and returns what it became.
        assert http.delete(f"/v1/jobs/{job['id']}").json()["state"] == "done"
        assert http.get(f"/v1/jobs/{job['id']}").json()["state"] == "done"


def test_a_job_that_is_cancelled_twice_ends_once(
    settings, serving, slow_worker, monkeypatch
) -> None:
    deciding, decide = threading.Event(), threading.Event()
    is_published, cancel = JobRecords.is_published, Jobs.cancel
    asked = []

    def slow_look(self, job) -> bool:
        deciding.set()
        assert decide.wait(60)
        return is_published(self, job)

    async def watched_cancel(self, *arguments):
        asked.append(arguments)
        if len(asked) == 2:
            # After the second one has had its say.
            asyncio.get_running_loop().call_soon(decide.set)
        return await cancel(self, *arguments)

    monkeypatch.setattr(JobRecords, "is_published", slow_look)
    monkeypatch.setattr(Jobs, "cancel", watched_cancel)
    with (
        serving(create_app(settings)) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60) as http,
        ThreadPoolExecutor(1) as pool,
    ):
        job = http.post("/v1/checkpoints/gpt/9/convert", json=TO_NEW).json()
        wait_for(http, job, "running")
        first = pool.submit(http.delete, f"/v1/jobs/{job['id']}")
        assert deciding.wait(60)
        second = http.delete(f"/v1/jobs/{job['id']}")
        states = [answer.json()["state"] for answer in (first.result(), second)]
    assert states == ["cancelled", "cancelled"]


def test_a_download_that_is_cancelled_is_never_published_later(
    root, settings, serving, worker, monkeypatch
) -> None:
    worker('{"ok": true}', ends=True)
    storing, ending = threading.Event(), threading.Event()
    store_result, end = Jobs._store_result, Jobs._end

    def slow_store(self, job_id, path, given_up) -> None:
        path.write_bytes(b"whole")
        storing.set()
        assert ending.wait(60)
        assert given_up.wait(60)
        store_result(self, job_id, path, given_up)

    def tell_and_end(self, *arguments) -> None:
        end(self, *arguments)
        ending.set()

    monkeypatch.setattr(Jobs, "_store_result", slow_store)
    monkeypatch.setattr(Jobs, "_end", tell_and_end)
    body = {"format": "adamw", "download": True}
    with (
        serving(create_app(settings)) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60) as http,
    ):
        job = http.post("/v1/checkpoints/gpt/9/convert", json=body).json()
        assert storing.wait(60)
        assert http.delete(f"/v1/jobs/{job['id']}").json()["state"] == "cancelled"
    assert not (root / ".luma" / "jobs" / job["id"] / "result.pt").exists()


def killed_meanwhile(root: Path, job: dict, **changes: object) -> Path:
    """Make the record of a job that of a server that is gone; return its folder."""
    folder = root / ".luma" / "jobs" / job["id"]
    content = json.loads((folder / "job.json").read_text())
    content["job"].update({"state": "running", "finished": None, **changes})
    (folder / "job.json").write_text(json.dumps(content))
    return folder


def test_a_server_that_was_killed_leaves_interrupted_jobs(
    root, settings, serving, quick_worker
) -> None:
    with (
        serving(create_app(settings)) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60) as http,
    ):
        job = http.post("/v1/checkpoints/gpt/9/convert", json=TO_NEW).json()
        wait_for(http, job, "done")
    killed_meanwhile(root, job)
    with (
        serving(create_app(settings)) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60) as http,
    ):
        found = http.get(f"/v1/jobs/{job['id']}").json()
        listed = http.get("/v1/jobs").json()["items"]
    assert (found["state"], found["error"]) == ("failed", "interrupted")
    assert listed == [found]


def test_what_a_killed_server_published_is_done(
    root, settings, serving, quick_worker, optimizer
) -> None:
    download = {"format": "adamw", "download": True}
    with (
        serving(create_app(settings)) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60) as http,
    ):
        jobs = [
            http.post("/v1/checkpoints/gpt/9/convert", json=body).json()
            for body in (TO_NEW, download)
        ]
        wait_for(http, jobs[0], "done")
        assert wait_for(http, jobs[1], "failed")["error"]
    checkpoint.save(root / "new" / "1", optimizer=optimizer())
    killed_meanwhile(root, jobs[0])
    folder = killed_meanwhile(root, jobs[1], error=None)
    with (
        serving(create_app(settings)) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60) as http,
    ):

        def states() -> list[str]:
            return [http.get(f"/v1/jobs/{job['id']}").json()["state"] for job in jobs]

        assert states() == ["done", "failed"]
        (folder / "result.pt").write_bytes(b"whole")
        assert states() == ["done", "done"]
        assert http.get(f"/v1/jobs/{jobs[1]['id']}/result").content == b"whole"
        # One that was there before the job began is not its result.
        killed_meanwhile(root, jobs[0], started="2999-01-01T00:00:00+00:00")
        assert states() == ["failed", "done"]


def test_the_worker_ends_with_the_server(root, tmp_path) -> None:
    code = (
        "import luma_server.jobs.worker as w, luma_core.convert as c, time\n"
        "c.convert = lambda **_: time.sleep(60)\nw.main()"
    )
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        process.stdin.write(b'{"src": "a", "dst": "b", "to": "adamw"}\n')
        process.stdin.close()
        assert process.wait(30) == 3
    finally:
        process.kill()
        process.wait()


def test_old_jobs_are_forgotten(root, settings, serving, quick_worker) -> None:
    app = create_app(replace(settings, job_keep_seconds=1))
    with serving(app) as url, httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
        job = http.post("/v1/checkpoints/gpt/9/convert", json=TO_NEW).json()
        wait_for(http, job, "done")
        folder: Path = root / ".luma" / "jobs" / job["id"]
        assert folder.exists()
        while folder.exists():  # the limit of a test ends this
            app.state.application.jobs.sweep()
            time.sleep(0.05)
