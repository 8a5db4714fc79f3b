"""docs/cli.md names every command, option, exit code and JSON key."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

from luma_client.cli.app import app
from luma_client.console.errors import EXIT_CODES

DOCUMENT = (Path(__file__).parents[3] / "docs" / "cli.md").read_text()
SECTIONS = {
    match[1]: match[2]
    for match in re.finditer(r"^## `luma (\w+).*?`\n(.*?)(?=^## |\Z)", DOCUMENT, re.M | re.S)
}
COMMON = DOCUMENT.split("\n## ")[0]


def commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def test_every_command_has_a_section_and_no_section_is_of_another() -> None:
    assert SECTIONS.keys() == commands().keys()


@pytest.mark.parametrize("name", sorted(SECTIONS))
def test_every_option_is_named_and_no_other(name: str) -> None:
    options = {"--help", "-h"}
    command = commands()[name]
    members = [command, *getattr(command, "commands", {}).values()]
    options |= {
        option
        for member in members
        for parameter in member.params
        if parameter.param_type_name == "option"
        for option in parameter.opts
    }
    text = SECTIONS[name] + COMMON
    assert {option for option in options if not re.search(rf"`{option}[ `]", text)} == set()
    rows = re.findall(r"^\| (.*?) \|", SECTIONS[name], re.M)
    named = set(re.findall(r"`(--?\w[\w-]*)", " ".join(rows)))
    assert named - options == set()


@pytest.mark.parametrize("name", sorted(SECTIONS))
def test_the_json_keys_are_those_of_the_help(name: str) -> None:
    epilog = import_module(f"luma_client.cli.{name}").EPILOG
    listed = epilog.split("JSON keys")[1].split(":", 1)[1].split("(")[0]
    keys = set(re.findall(r"\w+", listed)) - {"and"}
    text = re.search(r"JSON keys.*?:\s(.*?)[.;]\s", SECTIONS[name], re.S)
    assert text is not None
    assert set(re.findall(r"`(\w+)`", text[1])) == keys


def test_every_exit_code_is_listed() -> None:
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", DOCUMENT, re.M)}
    assert listed == {0, 130} | {code for _, code in EXIT_CODES}
