"""Limits under which readers must do their work."""

import resource
from pathlib import Path

import pytest

SPARE_BYTES = 4 << 30


@pytest.fixture
def little_memory():
    """Fail whatever asks for much more memory than the small files at hand can need."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("needs /proc to tell how much memory is in use")
    used = int(statm.read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + SPARE_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
