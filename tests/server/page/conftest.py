"""The page in a real browser, as people use it: with a mouse, a keyboard, a phone, a reader."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from luma_core import LUMA, checkpoint
from luma_server import Settings, create_app
from luma_server.http.tokens import create_token

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)


@pytest.fixture(scope="session")
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
    """Lasts for a file of tests only: others need this thread without an event loop."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
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


@pytest.fixture
def protected(serving, tmp_path) -> Callable[..., contextlib.AbstractContextManager[Any]]:
    """Runs a server over a root; gives its address, and a token for it if it wants one."""

    @contextlib.contextmanager
    def run(root: Path, tokens: bool) -> Iterator[tuple[str, str | None]]:
        file, text = tmp_path / "tokens.json", None
        if tokens:
            _, text = create_token(file, name="page", scope="write")
        settings = Settings(
            root=root, tokens_file=file if tokens else None, allow_anonymous=not tokens
        )
        with serving(create_app(settings)) as url:
            yield url, text

    return run
