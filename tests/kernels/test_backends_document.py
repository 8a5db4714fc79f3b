"""docs/backends.md holds the table of kernels that the backends' own tables give."""

from __future__ import annotations

from pathlib import Path

import pytest

from luma_core.backends.matrix import kernel_rows, kernel_table
from luma_kernels import cpu

pytest.importorskip("triton")
if not cpu.native_status().available:
    pytest.skip("there is no native library to ask", allow_module_level=True)

DOCUMENT = Path(__file__).parents[2] / "docs" / "backends.md"


def test_the_document_has_the_table_of_kernels() -> None:
    header, *lines = kernel_table()
    table = [header, ["---"] * len(header), *lines]
    text = "\n".join("| " + " | ".join(line) + " |" for line in table)
    assert text in DOCUMENT.read_text(encoding="utf-8"), f"docs/backends.md must hold\n{text}"


def test_what_has_no_kernel_says_why() -> None:
    rows = {(row.rule, row.codecs): row for row in kernel_rows()}
    row = rows["AdamWRule", ("costate_m", "fp32")]
    assert row.backends == ()
    assert "costate_m" in row.native
    assert "costate_m" in row.triton
    assert rows["AdamWRule", ("luma16_m", "luma16_v")].backends == ("native", "triton")
