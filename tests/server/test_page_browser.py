"""The page in a real browser, as people use it: with a mouse, a keyboard, a phone, a reader."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from luma_core import LUMA, checkpoint
from luma_server import Settings, create_app
from luma_server.tokens import create_token

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

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


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """``gpt/{10,20,30}`` of three layers, whose second misses a block; ``bert/1``; ``bad/1``."""
    torch.manual_seed(0)
    names = [f"h.{i}.{part}.weight" for i in range(3) for part in ("attn", "mlp.up", "mlp.down")]
    names += ["tokens.weight", "norm.weight"]
    params = {
        name: torch.nn.Parameter(torch.randn(64) if name[0] == "n" else torch.randn(8, 64))
        for name in names
    }
    optimizer = LUMA(params.items(), seed=0)
    folder = tmp_path_factory.mktemp("page")
    for step in (10, 20, 30):
        for i, param in enumerate(params.values()):
            param.grad = torch.randn_like(param) * 10.0**-i
        if step == 20:
            params["h.1.attn.weight"].grad[0, 0] = torch.nan
        optimizer.step()
        checkpoint.save(folder / "gpt" / str(step), optimizer=optimizer)
    shutil.copytree(folder / "gpt" / "10", folder / "bert" / "1")
    (folder / "bad" / "1").mkdir(parents=True)
    (folder / "bad" / "1" / "luma.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


class Visit:
    """One browser tab that looks at one server, and what it complained about."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.url = url
        self.context = browser.new_context(base_url=url, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(15_000)
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def _console(self, message: Any) -> None:
        # Chromium tells of every status above 399, also where the page expects it.
        if message.type in ("error", "warning") and "Failed to load" not in message.text:
            self.complaints.append(message.text)

    def open(self, path: str) -> Any:
        self.page.goto(path)
        return self.settle()

    def settle(self) -> Any:
        """Wait until the view is whole."""
        self.page.wait_for_selector("main h1")
        self.page.wait_for_selector("[aria-busy]", state="detached")
        self.page.wait_for_selector(".waiting", state="detached")
        return self.page

    def heading(self) -> str:
        text: str = self.page.locator("main h1").inner_text()
        return text

    def check(self) -> None:
        assert self.complaints == []
        assert [url for url in self.asked if not url.startswith((self.url, "blob:"))] == []


@pytest.fixture
def visit_to(browser) -> Iterator[Callable[..., Visit]]:
    """Opens a tab; at the end no tab may have complained or asked elsewhere."""
    visits: list[Visit] = []

    def visit(url: str, **options: Any) -> Visit:
        visits.append(Visit(browser, url, **options))
        return visits[-1]

    yield visit
    for one in visits:
        one.context.close()
        one.check()


@pytest.fixture
def server(checkpoints, serving) -> Iterator[str]:
    """A server to which everybody may write."""
    with serving(create_app(Settings(root=checkpoints, allow_anonymous=True))) as url:
        yield url


@pytest.fixture
def visit(server, visit_to) -> Visit:
    return visit_to(server)


def test_runs_are_listed_with_size_and_saving(visit: Visit) -> None:
    page = visit.open("/")
    assert page.url.endswith("/runs")
    row = page.get_by_role("row").filter(has_text="gpt")
    sync_api.expect(row).to_contain_text(re.compile(r"KiB \(\u2212[45]\d\.\d%\)"))
    sync_api.expect(page.get_by_role("row").filter(has_text="bad")).to_contain_text("damaged")
    page.get_by_label("Find among 3 runs").fill("ber")
    assert page.get_by_role("rowheader").all_inner_texts() == ["bert"]
    assert page.url.endswith("/runs?q=ber")


def test_a_run_shows_its_modules_over_steps(visit: Visit, server: str) -> None:
    page = visit.open("/runs/gpt?depth=1")
    asked = {"metric": "update.rms", "module": "tokens"}
    series = httpx.get(f"{server}/v1/runs/gpt/series", params=asked, trust_env=False).json()
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


def test_the_number_of_a_run_can_be_chosen_and_shared(visit: Visit) -> None:
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
    with serving(create_app(Settings(root=root, series_seconds=0.001))) as url:
        page = visit_to(url).open("/runs/gpt?depth=0")
        assert page.locator("figure circle").count() == 3


def test_the_heat_map_has_the_updates_of_the_statistics(visit: Visit, server: str) -> None:
    page = visit.open("/runs/gpt/30")
    path = f"{server}/v1/checkpoints/gpt/30/stats/modules?depth=32"
    modules = {one["module"]: one for one in httpx.get(path, trust_env=False).json()["items"]}
    rows = page.get_by_role("group", name="update size (rms)", exact=True).get_by_role("row")
    assert rows.nth(0).locator("th").all_inner_texts() == ["layer", "attn", "mlp.up", "mlp.down"]
    assert rows.count() == 4
    for i in range(3):
        cells = rows.nth(i + 1).locator("td").all_inner_texts()
        for part, text in zip(("attn", "mlp.up", "mlp.down"), cells, strict=True):
            shown = float(text.removeprefix("⚠ ").replace("\u2212", "-"))
            assert shown == pytest.approx(modules[f"h.{i}.{part}"]["update"]["rms"], rel=0.006)
            assert text.startswith("⚠") == ((i, part) == (1, "attn"))


def test_modules_open_by_keyboard_down_to_parameters(visit: Visit) -> None:
    page = visit.open("/runs/gpt/30")
    for name in ("h", "h.1", "h.1.attn"):
        page.get_by_label(f"Inside {name}", exact=True).focus()
        page.keyboard.press("Enter")
    tree = page.get_by_role("group", name="Modules", exact=True)
    row = tree.get_by_role("row").filter(has=page.get_by_label("h.1.attn.weight", exact=True))
    sync_api.expect(row).to_contain_text("⚠ 1 block left out")
    page.get_by_label("Inside h", exact=True).press("Space")
    assert tree.locator("tbody tr").count() == 3


def test_a_module_can_be_chosen_and_shared(visit: Visit) -> None:
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


def test_histograms_show_moments_and_scales(visit: Visit) -> None:
    page = visit.open("/runs/gpt/30?module=tokens.weight")
    plots = page.locator("section:has(#detail) svg[role=img]")
    labels = [plots.nth(i).get_attribute("aria-label") for i in range(plots.count())]
    assert [label.split(":")[0] for label in labels] == [
        "Update",
        "First moment",
        "Second moment",
        "First moment",
        "Second moment",
    ]
    figure = page.locator("figure").filter(has_text="First moment").first
    sync_api.expect(figure).to_contain_text(re.compile(r"rms .*zero .*saturated"))
    figure.get_by_text("Numbers").click()
    shares = figure.locator("td").all_inner_texts()
    assert sum(float(text.strip("<%")) for text in shares) == pytest.approx(100, abs=1)


def test_two_checkpoints_ticked_are_compared(visit: Visit) -> None:
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


def test_a_comparison_is_asked_for_by_name(visit: Visit) -> None:
    page = visit.open("/compare")
    page.get_by_label("Checkpoint", exact=True).fill("gpt/10")
    page.get_by_label("compared with").fill("bert/1")
    page.get_by_label("only parameters like").fill("h.0.*")
    page.get_by_role("button", name="Compare").click()
    page.wait_for_url("**/compare?**")
    visit.settle()
    sync_api.expect(page.locator(".tiles")).to_contain_text("equal")
    sync_api.expect(page.locator(".tiles")).to_contain_text("0 of 3 tensors differ")


@pytest.mark.parametrize("tokens", [pytest.param(False, marks=pytest.mark.heavy), True])
def test_jobs_are_followed_and_results_downloaded(
    checkpoints, serving, visit_to, tmp_path, tokens
) -> None:
    root = shutil.copytree(checkpoints / "bert", tmp_path / "root" / "bert").parent
    with protected(root, tmp_path, serving, tokens) as (url, token):
        visit = visit_to(url)
        if token:
            visit.context.add_init_script(f"sessionStorage.setItem('luma-token', '{token}')")
        page = visit.open("/jobs")
        sync_api.expect(page.locator("main")).to_contain_text("There are no jobs.")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        body = {"format": "adamw", "download": True}
        path = f"{url}/v1/checkpoints/bert/1/convert"
        assert httpx.post(path, json=body, headers=headers, trust_env=False).status_code == 202
        save = page.get_by_text("Download")
        save.wait_for(timeout=60_000)
        with page.expect_download() as download:
            save.click()
        saved = torch.load(download.value.path(), weights_only=True)
        assert len(saved["state"]) == 11


@contextlib.contextmanager
def protected(
    root: Path, folder: Path, serving: Any, tokens: bool
) -> Iterator[tuple[str, str | None]]:
    """Run a server, and give its address and a token for it, if it wants one."""
    file, text = folder / "tokens.json", None
    if tokens:
        _, text = create_token(file, name="page", scope="write")
    settings = Settings(root=root, tokens_file=file if tokens else None, allow_anonymous=not tokens)
    with serving(create_app(settings)) as url:
        yield url, text


def test_a_token_is_asked_for_kept_and_forgotten(checkpoints, serving, visit_to, tmp_path) -> None:
    with protected(checkpoints, tmp_path, serving, True) as (url, token):
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
def test_what_is_not_there_is_told(visit: Visit, path: str, text: str) -> None:
    sync_api.expect(visit.open(path).locator("main")).to_contain_text(text)


def test_names_and_labels_are_never_markup(checkpoints, serving, visit_to, tmp_path) -> None:
    optimizer = LUMA([("<b>h</b>.w", torch.nn.Parameter(torch.ones(4, 64)))])
    checkpoint.save(tmp_path / "gpt" / "1", optimizer=optimizer)
    with serving(create_app(Settings(root=tmp_path, allow_anonymous=True))) as url:
        body = {"labels": {"note": "<img src=x onerror=alert(1)>"}}
        path = f"{url}/v1/checkpoints/gpt/1/labels"
        assert httpx.put(path, json=body, trust_env=False).status_code == 200
        page = visit_to(url).open("/runs/gpt/1")
        sync_api.expect(page.locator(".chip")).to_have_text(f"note: {body['labels']['note']}")
        sync_api.expect(page.locator(".tree tbody th").first).to_have_text("<b>h</b>")
        assert page.locator("main img, main b").count() == 0


def test_an_empty_root_tells_how_to_begin(tmp_path, serving, visit_to) -> None:
    with serving(create_app(Settings(root=tmp_path))) as url:
        page = visit_to(url).open("/runs")
        sync_api.expect(page.locator("main")).to_contain_text("luma push")


def test_a_server_that_is_gone_is_told_and_asked_again(visit: Visit) -> None:
    page = visit.open("/runs")
    page.context.set_offline(True)
    page.get_by_role("link", name="gpt", exact=True).click()
    page.get_by_role("heading", name="The server does not answer").wait_for()
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    page.get_by_role("heading", name="gpt", exact=True).wait_for()
    visit.settle()


def test_focus_and_title_follow_the_view(visit: Visit) -> None:
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
