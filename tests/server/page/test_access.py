"""Every view by keyboard and screen reader, on a phone, in light and dark."""

from __future__ import annotations

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")

VIEWS = (
    "/runs",
    "/runs/gpt",
    "/runs/gpt/30",
    "/runs/gpt/30?module=h.1",
    "/compare",
    "/compare?a=gpt/10&b=gpt/30",
    "/jobs",
    "/runs/gpt/99",
)
NARROW = {"width": 360, "height": 740}
TOUCHING = """
[...document.querySelectorAll(".plot svg")].flatMap((svg) => {
  const boxes = [...svg.querySelectorAll("text.tick.middle")].map((one) => [
    one.getBoundingClientRect(), one.textContent]);
  const within = svg.getBoundingClientRect();
  const cut = boxes.filter(([box]) => box.left < within.left - 1 || box.right > within.right + 1);
  const close = boxes.filter(([box], i) => i && box.left < boxes[i - 1][0].right + 3);
  return [...cut, ...close].map(([, text]) => `${svg.getAttribute("aria-label")}: ${text}`);
})
"""


def test_focus_and_title_follow_the_view(visit) -> None:
    page = visit.open("/runs")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.get_by_role("link", name="gpt", exact=True).focus()
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="gpt", exact=True).wait_for()
    visit.settle()
    assert page.title() == "gpt \u2013 LUMA"
    assert page.evaluate("document.activeElement.id") == "main"
    page.go_back()
    page.get_by_role("heading", name="Runs", exact=True).wait_for()
    assert page.get_by_role("navigation", name="Views").locator("[aria-current]").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_view_breaks_a_rule_of_accessibility(server, visit_to, scheme) -> None:
    visit = visit_to(server, color_scheme=scheme)
    broken = []
    for path in VIEWS:
        results = axe.Axe().run(visit.open(path)).response
        broken += [
            f"{path}: {one['id']}: {node['html'][:200]}"
            for one in results["violations"]
            for node in one["nodes"]
        ]
    assert broken == []


def test_no_view_is_wider_than_a_phone(server, visit_to) -> None:
    visit = visit_to(server, viewport=NARROW)
    wide = {}
    for path in VIEWS:
        wide[path] = visit.open(path).evaluate("document.documentElement.scrollWidth")
    assert wide == dict.fromkeys(VIEWS, NARROW["width"])


def test_both_schemes_have_colours_of_their_own(server, visit_to) -> None:
    seen = {}
    for scheme in ("light", "dark"):
        page = visit_to(server, color_scheme=scheme).open("/runs/gpt/30")
        seen[scheme] = [
            page.locator(place).first.evaluate("one => getComputedStyle(one).backgroundColor")
            for place in ("body", ".card", ".heat")
        ]
    assert all(a != b for a, b in zip(seen["light"], seen["dark"], strict=True))


@pytest.mark.parametrize("width", [NARROW["width"], 1280])
def test_labels_of_axes_do_not_touch_one_another(server, visit_to, width) -> None:
    visit = visit_to(server, viewport={"width": width, "height": 800})
    touching = []
    for path in ("/runs/gpt", "/runs/gpt/30", "/runs/gpt/30?module=h.1"):
        touching += visit.open(path).evaluate(TOUCHING)
    assert touching == []
