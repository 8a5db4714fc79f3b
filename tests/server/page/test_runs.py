"""Runs, and one run over its steps."""

from __future__ import annotations

import re
import shutil

import httpx
import pytest

from luma_server import Settings, create_app

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


def test_runs_are_listed_with_size_and_saving(visit) -> None:
    page = visit.open("/")
    assert page.url.endswith("/runs")
    row = page.get_by_role("row").filter(has_text="gpt")
    sync_api.expect(row).to_contain_text(re.compile(r"KiB \(\u2212[45]\d\.\d%\)"))
    sync_api.expect(page.get_by_role("row").filter(has_text="bad")).to_contain_text("damaged")
    page.get_by_label("Find among 3 runs").fill("ber")
    assert page.get_by_role("rowheader").all_inner_texts() == ["bert"]
    assert page.url.endswith("/runs?q=ber")


def test_a_run_shows_its_modules_over_steps(visit, server: str) -> None:
    page = visit.open("/runs/gpt?depth=1")
    asked = {"metric": "update.rms", "module": "tokens"}
    series = httpx.get(
        f"{server}/v1/runs/gpt/series", params=asked, trust_env=False, timeout=60
    ).json()
    plot = page.get_by_label("update size (rms) over steps: arrow keys walk along the steps")
    assert plot.locator("polyline").count() == 3
    plot.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    readout = page.locator(".readout").inner_text()
    assert readout.startswith("step 2: ")
    value = series["items"][1]["value"]
    assert f"tokens {float(f'{value:.3g}')}" in readout
    table = page.get_by_role("group", name="modules and checkpoints").get_by_role("rowheader")
    assert sorted(table.all_inner_texts()) == ["h", "norm", "tokens"]


def test_the_number_of_a_run_can_be_chosen_and_shared(visit) -> None:
    page = visit.open("/runs/gpt")
    page.get_by_label("Number").select_option("exp_avg_sq.max")
    page.get_by_label("Depth of modules").select_option("2")
    visit.settle()
    assert page.url.endswith("/runs/gpt?metric=exp_avg_sq.max&depth=2")
    page.reload()
    visit.settle()
    assert page.get_by_label("Number").input_value() == "exp_avg_sq.max"
    sync_api.expect(page.locator(".legend")).to_contain_text("h.2")


def test_points_that_come_later_are_drawn_when_they_do(checkpoints, serving, visit_to, tmp_path):
    root = shutil.copytree(checkpoints / "gpt", tmp_path / "root" / "gpt").parent
    with serving(
        create_app(Settings(root=root, allow_anonymous=True, series_seconds=0.001))
    ) as url:
        page = visit_to(url).open("/runs/gpt?depth=0")
        assert page.locator("figure circle").count() == 3
