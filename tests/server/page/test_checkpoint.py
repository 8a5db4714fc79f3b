"""One checkpoint: layers, modules, histograms."""

from __future__ import annotations

import math
import re

import httpx
import pytest
import torch

from luma_core import LUMA, checkpoint
from luma_server import Settings, create_app

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


def test_the_heat_map_has_the_updates_of_the_statistics(visit, server: str) -> None:
    page = visit.open("/runs/gpt/30")
    path = f"{server}/v1/checkpoints/gpt/30/stats/modules?depth=32"
    modules = {
        one["module"]: one for one in httpx.get(path, trust_env=False, timeout=60).json()["items"]
    }
    rows = page.get_by_role("group", name="update size (rms)", exact=True).get_by_role("row")
    assert rows.nth(0).locator("th").all_inner_texts() == ["layer", "attn", "mlp.up", "mlp.down"]
    assert rows.count() == 4
    for i in range(3):
        cells = rows.nth(i + 1).locator("td").all_inner_texts()
        for part, text in zip(("attn", "mlp.up", "mlp.down"), cells, strict=True):
            shown = float(text.removeprefix("⚠ ").replace("\u2212", "-"))
            assert shown == pytest.approx(modules[f"h.{i}.{part}"]["update"]["rms"], rel=0.006)
            assert text.startswith("⚠") == ((i, part) == (1, "attn"))


def test_modules_open_by_keyboard_down_to_parameters(visit) -> None:
    page = visit.open("/runs/gpt/30")
    for name in ("h", "h.1", "h.1.attn"):
        page.get_by_label(f"Inside {name}", exact=True).focus()
        page.keyboard.press("Enter")
    tree = page.get_by_role("group", name="Modules", exact=True)
    row = tree.get_by_role("row").filter(has=page.get_by_label("h.1.attn.weight", exact=True))
    sync_api.expect(row).to_contain_text("⚠ 1 block left out")
    page.get_by_label("Inside h", exact=True).press("Space")
    assert tree.locator("tbody tr").count() == 3


def test_a_module_can_be_chosen_and_shared(visit) -> None:
    page = visit.open("/runs/gpt/30")
    page.get_by_role("group", name="update size").get_by_role("row").nth(3).get_by_role(
        "link"
    ).first.click()
    sync_api.expect(page.locator("#detail")).to_have_text("h.2.attn")
    assert page.url.endswith("?module=h.2.attn")
    assert page.locator("#detail").evaluate("one => one === document.activeElement")
    page.reload()
    visit.settle()
    assert page.locator("#detail").inner_text() == "h.2.attn"
    chosen = page.locator(".tree [aria-current]")
    assert chosen.get_attribute("aria-label") == "h.2.attn"


def labels(page) -> list[str]:
    plots = page.locator("section:has(#detail) svg[role=img]")
    return [plots.nth(i).get_attribute("aria-label") for i in range(plots.count())]


def test_histograms_show_moments_and_scales(visit) -> None:
    page = visit.open("/runs/gpt/30?module=tokens.weight")
    titles = [re.split(": [a-z]+ [0-9]", label)[0] for label in labels(page)]
    assert titles == [
        "Update",
        "First moment",
        "Second moment",
        "First moment: block scales",
        "Second moment: block scales",
    ]
    figure = page.locator("figure").filter(has_text="First moment").first
    sync_api.expect(figure).to_contain_text(re.compile(r"rms .*zero .*saturated"))
    figure.get_by_text("Numbers").click()
    shares = figure.locator("td").all_inner_texts()
    assert sum(float(text.strip("<%")) for text in shares) == pytest.approx(100, abs=1)


def test_scales_of_a_module_are_those_of_the_statistics(visit, server) -> None:
    path = f"{server}/v1/checkpoints/gpt/30/stats/modules?depth=2"
    modules = {
        one["module"]: one for one in httpx.get(path, trust_env=False, timeout=60).json()["items"]
    }
    scale = modules["h.1"]["moments"]["exp_avg"]["scale"]
    page = visit.open("/runs/gpt/30?module=h.1")
    figure = page.locator("figure").filter(has_text="First moment: block scales")
    sync_api.expect(figure).to_contain_text(f"{scale['blocks']} blocks")
    figure.get_by_text("Numbers").click()
    first, shown = scale["histogram"]["first"], {}
    for row in figure.locator("tbody tr").all():
        low = float(row.locator("th").inner_text().split(" to ")[0].replace("\u2212", "-"))
        shown[round(math.log2(low)) - first] = row.locator("td").inner_text()
    counts = enumerate(scale["histogram"]["counts"])
    expected = {i: count / scale["blocks"] for i, count in counts if count}
    assert shown.keys() == expected.keys()
    for i, text in shown.items():
        assert float(text.rstrip("%")) == pytest.approx(100 * expected[i], rel=0.05)


def test_a_state_without_scales_says_so(serving, visit_to, tmp_path) -> None:
    params = [("w", torch.nn.Parameter(torch.ones(4, 8)))]
    optimizer = LUMA(params)
    params[0][1].grad = torch.ones(4, 8)
    optimizer.step()
    checkpoint.save(tmp_path / "gpt" / "1", optimizer=optimizer)
    with serving(create_app(Settings(root=tmp_path, allow_anonymous=True))) as url:
        page = visit_to(url).open("/runs/gpt/1")
        sync_api.expect(page.locator("main")).to_contain_text("The state keeps no block scales.")


OUTSIDE = """() => [...document.querySelectorAll("main svg")].flatMap((svg) => {
  const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text")].filter((text) => {
    const at = text.getBoundingClientRect();
    return at.left < box.left - 1 || at.right > box.right + 1;
  }).map((text) => text.textContent);
})"""


@pytest.mark.parametrize("width", [320, 620, 1280])
def test_long_names_fit_and_tell_layers_apart(serving, visit_to, tmp_path, width) -> None:
    part = "block_sparse_moe.experts.7.w1.weight"
    names = [f"model.language_model.layers.{i}.{part}" for i in range(3)]
    names.append("a_module_whose_name_has_no_point_in_it_and_is_longer_than_a_phone_is_wide")
    params = {name: torch.nn.Parameter(torch.randn(16, 64)) for name in names}
    optimizer = LUMA(params.items(), min_compress_elements=64)
    for param in params.values():
        param.grad = torch.randn_like(param)
    optimizer.step()
    checkpoint.save(tmp_path / "gpt" / "1", optimizer=optimizer)
    with serving(create_app(Settings(root=tmp_path, allow_anonymous=True))) as url:
        visit = visit_to(url, viewport={"width": width, "height": 800})
        for path in ("/runs/gpt", "/runs/gpt/1"):
            page = visit.open(path)
            page.wait_for_selector("main svg text")
            assert page.evaluate(OUTSIDE) == []
            assert page.evaluate("document.documentElement.scrollWidth") == width
        title = "First moment: smallest, median and largest block scale"
        texts = page.locator(f'svg[aria-label="{title}"] text').all_text_contents()
        # On a phone the table below the plot has the whole names.
        assert width < 600 or set(names[:3]) < set(texts)
