"""Shared by all tests."""

import logging
import os
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():
    # Triton reads it when it is imported, which PyTorch's own test helpers do.
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_configure() -> None:
    """Give each of several test processes its share of the cores, and all the width of a pipe.

    They inherit the width of a terminal, which readline sets in the process that starts them.
    """
    os.environ.pop("COLUMNS", None)
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if processes > 1:
        threads = max(1, torch.get_num_threads() // processes)
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Let no test's random numbers depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_log_handlers() -> Iterator[None]:
    """A server in this process replaces the root logger's handlers, those of pytest among them."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
