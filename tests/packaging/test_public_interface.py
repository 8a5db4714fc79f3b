"""The public interface is the one that was reviewed."""

import difflib

from tests.packaging.public_interface import PATH, interface


def test_the_public_interface_is_the_one_on_record() -> None:
    recorded, found = PATH.read_text(), interface()
    lines = difflib.unified_diff(
        recorded.splitlines(), found.splitlines(), "recorded", "found", n=1
    )
    assert found == recorded, "\n".join(
        [
            "The public interface changed. If it is meant to, write it down with",
            "python -m tests.packaging.public_interface",
            *lines,
        ]
    )
