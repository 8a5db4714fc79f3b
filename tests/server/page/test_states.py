"""What is shown where something is missing, refused, strange or gone."""

from __future__ import annotations

import httpx
import pytest
import torch

from luma_core import LUMA, checkpoint
from luma_server import Settings, create_app

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


def test_a_token_is_asked_for_kept_and_forgotten(checkpoints, protected, visit_to) -> None:
    with protected(checkpoints, True) as (url, token):
        visit = visit_to(url)
        page = visit.open("/runs/gpt")
        assert visit.heading() == "This server wants a token"
        page.get_by_label("Token").fill("wrong")
        page.keyboard.press("Enter")
        page.get_by_role("alert").wait_for()
        page.get_by_label("Token").fill(token)
        page.get_by_role("button", name="Continue").click()
        page.get_by_role("heading", name="gpt", exact=True).wait_for()
        visit.settle()
        page.reload()
        visit.settle()
        assert visit.heading() == "gpt"
        assert page.evaluate("localStorage.length") == 0
        assert token not in page.url
        page.get_by_role("button", name="Forget token").click()
        page.get_by_label("Token").wait_for()
        assert page.evaluate("sessionStorage.length") == 0


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/runs/gpt/99", "There is no such checkpoint"),
        ("/runs/none", "There is no checkpoint of this run."),
        ("/runs/bad/1", "⚠"),
        ("/runs/bad", "⚠"),
        ("/runs/gpt/30?module=none", "This checkpoint has no such module."),
        ("/compare?a=gpt/10&b=gpt/99", "There is no such checkpoint"),
    ],
)
def test_what_is_not_there_is_told(visit, path: str, text: str) -> None:
    sync_api.expect(visit.open(path).locator("main")).to_contain_text(text)


def test_names_and_labels_are_never_markup(serving, visit_to, tmp_path) -> None:
    optimizer = LUMA([("<b>h</b>.w", torch.nn.Parameter(torch.ones(4, 64)))])
    checkpoint.save(tmp_path / "gpt" / "1", optimizer=optimizer)
    with serving(create_app(Settings(root=tmp_path, allow_anonymous=True))) as url:
        body = {"labels": {"note": "<img src=x onerror=alert(1)>"}}
        path = f"{url}/v1/checkpoints/gpt/1/labels"
        assert httpx.put(path, json=body, trust_env=False, timeout=60).status_code == 200
        page = visit_to(url).open("/runs/gpt/1")
        sync_api.expect(page.locator(".chip")).to_have_text(f"note: {body['labels']['note']}")
        sync_api.expect(page.locator(".tree tbody th").first).to_have_text("<b>h</b>")
        assert page.locator("main img, main b").count() == 0


def test_an_empty_root_tells_how_to_begin(tmp_path, serving, visit_to) -> None:
    with serving(create_app(Settings(root=tmp_path, allow_anonymous=True))) as url:
        page = visit_to(url).open("/runs")
        sync_api.expect(page.locator("main")).to_contain_text("luma push")


def test_a_server_that_is_gone_is_told_and_asked_again(visit) -> None:
    page = visit.open("/runs")
    page.context.set_offline(True)
    page.get_by_role("link", name="gpt", exact=True).click()
    page.get_by_role("heading", name="The server does not answer").wait_for()
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    page.get_by_role("heading", name="gpt", exact=True).wait_for()
    visit.settle()
