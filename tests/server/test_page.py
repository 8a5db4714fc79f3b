"""The files of the page: what a browser may do with them, and that nothing else is needed."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest

from luma_server import Settings, create_app
from luma_server.page.routes import VIEWS, assets

PATHS = [path.replace("{run}", "gpt").replace("{step}", "9") for path in VIEWS]
SCRIPTS = sorted(name for name in assets() if name.endswith(".js"))


@pytest.mark.parametrize("path", PATHS)
def test_every_view_is_the_same_document(http: httpx.Client, path: str) -> None:
    answer = http.get(path)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.content == http.get(PATHS[0]).content


def test_the_root_leads_to_the_runs_without_naming_a_host(http: httpx.Client) -> None:
    answer = http.get("/", headers={"Host": "127.0.0.1:1"})
    assert (answer.status_code, answer.headers["Location"]) == (307, "/runs")


def test_nothing_inline_and_nothing_from_elsewhere_is_allowed(http: httpx.Client) -> None:
    policy = http.get("/runs").headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy


def test_the_document_has_no_inline_script_or_style() -> None:
    text = assets()["index.html"].body.decode()
    assert re.findall(r"<style|\sstyle=|\son\w+=", text) == []
    assert re.findall(r"<script(?![^>]*\ssrc=)", text) == []


@pytest.mark.parametrize("name", sorted(assets()))
def test_files_name_no_other_host(name: str) -> None:
    text = assets()[name].body.decode().replace("http://www.w3.org/2000/svg", "")
    assert re.findall(r"https?://[^\s\"'`)]+|[\"'(]//\w", text) == []


def test_everything_the_document_names_is_served(http: httpx.Client) -> None:
    named = re.findall(r'(?:src|href)="(/page/[^"]+)"', assets()["index.html"].body.decode())
    assert len(named) >= 4
    assert {http.get(path).status_code for path in named} == {200}


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_import_is_served(name: str) -> None:
    found = re.findall(r'from "([^"]+)"', assets()[name].body.decode())
    assert {urljoin(name, path) for path in found} <= set(SCRIPTS)


def test_every_file_of_the_folder_is_served() -> None:
    folder = Path(__file__).parents[2] / "server" / "luma_server" / "page" / "static"
    expected = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(assets()) == expected


def test_files_are_asked_for_again_and_not_sent_again(http: httpx.Client) -> None:
    first = http.get("/page/js/main.js")
    assert first.headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert first.headers["Cache-Control"] == "no-cache"
    again = http.get("/page/js/main.js", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_head_has_no_body(http: httpx.Client) -> None:
    answer = http.head("/runs")
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["Content-Length"]) == len(http.get("/runs").content)


@pytest.mark.parametrize(
    "path", ["none.js", "index.html", "../routes.py", "js/../../routes.py", ""]
)
def test_other_files_are_not_there(http: httpx.Client, check_problem, path: str) -> None:
    # httpx resolves dots in paths unless the address is given raw.
    url = http.base_url.copy_with(raw_path=f"/page/{path}".encode())
    check_problem(http.get(url), 404, "not_found")


def test_a_view_there_is_not_is_a_problem(http: httpx.Client, check_problem) -> None:
    check_problem(http.get("/runs/a/b/c"), 404, "not_found")


def test_the_api_document_does_not_list_the_page(root: Path) -> None:
    paths = create_app(Settings(root=root, allow_anonymous=True)).openapi()["paths"]
    assert [path for path in paths if path in VIEWS or path.startswith("/page")] == []
