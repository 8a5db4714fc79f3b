"""docs/server.md names every setting, route and error code."""

from __future__ import annotations

import json
import re
from dataclasses import MISSING, fields
from pathlib import Path

import httpx

from luma_core.stats import METRICS
from luma_core.wire import Problem
from luma_server import Settings, create_app
from luma_server.http import problems

DOCUMENT = (Path(__file__).parents[2] / "docs" / "server.md").read_text()


def rows(heading: str) -> list[list[str]]:
    section = DOCUMENT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]


def test_every_setting_is_listed_with_its_default() -> None:
    expected = [
        (field.name, "required" if field.default is MISSING else str(field.default))
        for field in fields(Settings)
    ]
    assert [(name, default) for name, default, _ in rows("Settings")] == expected


def test_every_route_is_listed(root: Path) -> None:
    paths = create_app(Settings(root=root, allow_anonymous=True)).openapi()["paths"]
    expected = {f"{method.upper()} {path}" for path, kinds in paths.items() for method in kinds}
    assert {route for route, _ in rows("Routes")} == {*expected, "GET /openapi.json"}


def test_every_error_code_is_listed_with_its_status() -> None:
    listed = {code: int(status) for status, code, _ in rows("Errors")}
    assert listed == problems.STATUS


def test_every_metric_of_series_is_named() -> None:
    for metric in METRICS:
        for part in metric.split("."):
            assert f"`{part}`" in DOCUMENT or f"`{metric}`" in DOCUMENT


def test_the_example_of_an_error_is_what_the_server_answers(http: httpx.Client) -> None:
    example = json.loads(DOCUMENT.split("```json\n")[1].split("```")[0])
    assert list(example) == [field.name for field in fields(Problem)]
    answer = http.get("/v1/checkpoints/gpt2/999").json()
    assert {**answer, "request_id": ""} == {**example, "request_id": ""}


def test_the_examples_of_requests_are_routes(root: Path) -> None:
    paths = create_app(Settings(root=root, allow_anonymous=True)).openapi()["paths"]
    patterns = [re.sub(r"{\w+}", "[^/]+", path) for path in paths]
    asked = re.findall(r"^curl '?http://127.0.0.1:8000(/[^\s?']*)", DOCUMENT, re.M)
    assert len(asked) == 3
    assert all(any(re.fullmatch(pattern, path) for pattern in patterns) for path in asked)
