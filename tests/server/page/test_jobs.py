"""Conversions: begun elsewhere, followed, cancelled, downloaded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from luma_server import Settings, create_app

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


@pytest.mark.parametrize("tokens", [pytest.param(False, marks=pytest.mark.heavy), True])
def test_jobs_are_followed_and_results_downloaded(
    checkpoints, protected, visit_to, tmp_path, tokens
) -> None:
    root = shutil.copytree(checkpoints / "bert", tmp_path / "root" / "bert").parent
    with protected(root, tokens) as (url, token):
        visit = visit_to(url)
        if token:
            visit.context.add_init_script(f"sessionStorage.setItem('luma-token', '{token}')")
        page = visit.open("/jobs")
        sync_api.expect(page.locator("main")).to_contain_text("There are no jobs.")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        body = {"format": "adamw", "download": True}
        path = f"{url}/v1/checkpoints/bert/1/convert"
        assert (
            httpx.post(path, json=body, headers=headers, trust_env=False, timeout=60).status_code
            == 202
        )
        save = page.get_by_text("Download")
        save.wait_for(timeout=60_000)
        with page.expect_download() as download:
            save.click()
        saved = torch.load(download.value.path(), weights_only=True)
        assert len(saved["state"]) == 11


def convert(server: str) -> dict[str, Any]:
    body = {"format": "luma", "codec": "fp32", "to": {"run": "wide", "step": "1"}}
    answer = httpx.post(
        f"{server}/v1/checkpoints/bert/1/convert", json=body, trust_env=False, timeout=60
    )
    assert answer.status_code == 202
    job: dict[str, Any] = answer.json()
    return job


@pytest.fixture
def one_server(checkpoints, serving, tmp_path) -> Iterator[tuple[str, Path]]:
    """A server over a root of its own, and that root."""
    root = shutil.copytree(checkpoints / "bert", tmp_path / "root" / "bert").parent
    with serving(create_app(Settings(root=root, allow_anonymous=True))) as url:
        yield url, root


def row_of(page, state: str):
    return page.get_by_role("row").filter(has_text=state)


def test_progress_is_shown_and_a_job_cancelled(one_server, visit_to, worker) -> None:
    url, root = one_server
    worker('{"done": 1, "total": 4096}', ends=False)
    convert(url)
    page = visit_to(url).open("/jobs")
    running = row_of(page, "running")
    sync_api.expect(running).to_contain_text("0.024% of 4.00 KiB")
    bar = running.get_by_role("progressbar")
    assert bar.get_attribute("aria-label") == "bert/1: 0.024%"
    convert(url)
    sync_api.expect(row_of(page, "queued")).to_contain_text("luma (fp32) to wide/1")
    row_of(page, "queued").get_by_role("button", name="Cancel").click()
    sync_api.expect(row_of(page, "cancelled")).to_have_count(1)
    running.get_by_role("button", name="Cancel").focus()
    page.keyboard.press("Enter")
    sync_api.expect(row_of(page, "cancelled")).to_have_count(2)
    assert page.get_by_role("button", name="Cancel").count() == 0
    assert not (root / "wide").exists()


def test_a_job_that_fails_says_why(one_server, visit_to, worker) -> None:
    url, _ = one_server
    worker('{"error": "a shard is damaged.", "hint": "Send it again."}', ends=True)
    convert(url)
    failed = row_of(visit_to(url).open("/jobs"), "failed")
    sync_api.expect(failed).to_contain_text("a shard is damaged. Send it again.")
    assert failed.get_by_role("button").count() == 0


def test_a_job_of_a_server_that_stopped_is_interrupted(
    checkpoints, serving, visit_to, worker, tmp_path
) -> None:
    root = shutil.copytree(checkpoints / "bert", tmp_path / "root" / "bert").parent
    settings = Settings(root=root, allow_anonymous=True)
    worker('{"done": 1, "total": 2}', ends=False)
    with serving(create_app(settings)) as url:
        convert(url)
    with serving(create_app(settings)) as url:
        page = visit_to(url).open("/jobs")
        sync_api.expect(row_of(page, "failed")).to_contain_text("interrupted")


def test_a_job_leads_to_the_checkpoint_it_made(one_server, visit_to, worker) -> None:
    url, _ = one_server
    worker('{"ok": true}', ends=True)
    convert(url)
    done = row_of(visit_to(url).open("/jobs"), "done")
    link = done.get_by_role("link", name="wide/1")
    sync_api.expect(link).to_have_attribute("href", "/runs/wide/1")
