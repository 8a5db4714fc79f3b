"""Every tensor that the packages make names its device, so that torch's default is never asked."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.utils import _device

REPO = Path(__file__).resolve().parents[2]
PACKAGES = ("luma_core", "kernels/luma_kernels", "client/luma_client", "server/luma_server")
MAKERS = {function.__name__ for function in _device._device_constructors()}
"""The functions that ask for the default device."""


def unnamed(code: str) -> Iterator[int]:
    """Yield the lines of calls of ``torch.<maker>`` without ``device=``, and of their imports."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            if MAKERS & {alias.name for alias in node.names}:
                yield node.lineno
        elif isinstance(node, ast.Call) and _makes(node.func) and not _names_device(node):
            yield node.lineno


def _names_device(call: ast.Call) -> bool:
    return any(keyword.arg == "device" for keyword in call.keywords)


def _makes(function: ast.expr) -> bool:
    if not isinstance(function, ast.Attribute) or function.attr not in MAKERS:
        return False
    return isinstance(function.value, ast.Name) and function.value.id == "torch"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_tensor_names_its_device(package: str) -> None:
    found = [
        f"{path.relative_to(REPO)}:{line}"
        for path in sorted((REPO / package).rglob("*.py"))
        for line in unnamed(path.read_text(encoding="utf-8"))
    ]
    assert not found, f"device= is missing: {', '.join(found)}"


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("import torch\ntorch.zeros(3)", [2]),
        ("torch.tensor([1], dtype=torch.int64)", [1]),
        ("torch.empty(\n3, pin_memory=True)", [1]),
        ("from torch import Tensor, zeros", [1]),
        ("torch.zeros(3, device=x.device)\ntorch.from_numpy(x)\nx.new_zeros(3)", []),
    ],
)
def test_the_check_finds_calls_without_a_device(code: str, lines: list[int]) -> None:
    assert list(unnamed(code)) == lines
