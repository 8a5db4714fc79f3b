"""What a walk counts: each function once, of this project only, and those of other threads."""

import threading

import pytest

from benchmarks import walks
from luma_core import rounding
from luma_core.paths import resolve_path


def test_functions_are_counted_once_and_by_any_thread() -> None:
    def call() -> None:
        for _ in range(3):
            rounding.wrap32(7)
            [str(one) for one in range(3)]
        thread = threading.Thread(target=resolve_path, args=("x",))
        thread.start()
        thread.join()

    found = walks.visited(call)
    assert {place.name for place in found} == {"wrap32", "resolve_path"}
    assert {place.file for place in found} == {"luma_core/rounding.py", "luma_core/paths.py"}


def test_what_only_a_first_call_does_is_not_counted() -> None:
    calls = [rounding.wrap32, abs]
    assert walks.visited(lambda: calls.pop(0)(1)) == []


def test_the_table_has_every_walk(capsys: pytest.CaptureFixture[str]) -> None:
    walks.main([])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [name for name, *_ in rows] == ["step", "save", "load", "convert", "upload"]
    assert all(int(functions) >= int(files) > 5 for _, functions, files in rows)
