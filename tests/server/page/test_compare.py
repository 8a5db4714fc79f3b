"""Two checkpoints side by side."""

from __future__ import annotations

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


def test_two_checkpoints_ticked_are_compared(visit) -> None:
    page = visit.open("/runs/gpt")
    button = page.get_by_role("button", name="Compare two checkpoints")
    assert button.is_disabled()
    page.get_by_label("Compare 10").check()
    page.get_by_label("Compare 30").check()
    button.click()
    page.wait_for_url("**/compare?a=gpt%2F10&b=gpt%2F30")
    visit.settle()
    sync_api.expect(page.locator(".tiles")).to_contain_text("cosine of updates")
    rows = page.get_by_role("group", name="Parameters by drift").get_by_role("row")
    assert rows.count() == 1 + 11


def test_a_comparison_is_asked_for_by_name(visit) -> None:
    page = visit.open("/compare")
    page.get_by_label("Checkpoint", exact=True).fill("gpt/10")
    page.get_by_label("compared with").fill("bert/1")
    page.get_by_label("only parameters like").fill("h.0.*")
    page.get_by_role("button", name="Compare").click()
    page.wait_for_url("**/compare?**")
    visit.settle()
    sync_api.expect(page.locator(".tiles")).to_contain_text("equal")
    sync_api.expect(page.locator(".tiles")).to_contain_text("0 of 3 tensors differ")
