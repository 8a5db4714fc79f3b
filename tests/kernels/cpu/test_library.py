"""A library that is missing, foreign or stale is refused with its reason, and steps go on."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from luma_core import LUMA, backends
from luma_core.backends import native
from luma_core.codecs import Luma16M
from luma_core.errors import BackendUnavailableError
from luma_kernels import cpu
from luma_kernels.cpu import library
from luma_kernels.cpu.library import NativeLibrary, address, native_library


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(library, "LIBRARY_PATH", tmp_path / "_native.so")
    native_library.cache_clear()
    native.native_cpu.cache_clear()
    yield
    native_library.cache_clear()
    native.native_cpu.cache_clear()


@pytest.mark.usefixtures("no_library")
def test_without_it_steps_are_eager_with_one_notice(caplog: pytest.LogCaptureFixture) -> None:
    param = nn.Parameter(torch.ones(64, 64))
    param.grad = torch.ones_like(param)
    optimizer = LUMA([param], seed=0)
    with caplog.at_level(logging.WARNING, logger="luma"):
        for _ in range(3):
            optimizer.step()
    (notice,) = caplog.messages
    assert "was not built" in notice
    assert "luma doctor" in notice
    assert float(param.detach().max()) < 1
    assert not cpu.native_status().available


@pytest.mark.usefixtures("no_library")
def test_asking_for_it_by_name_fails_without_it() -> None:
    with pytest.raises(BackendUnavailableError, match="luma doctor"):
        LUMA([nn.Parameter(torch.ones(4))], backend="native")


def test_what_is_no_library_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "_native.so"
    path.write_bytes(b"not an ELF file")
    with pytest.raises(BackendUnavailableError, match="cannot be loaded"):
        NativeLibrary(path)


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("int other;", "cannot be loaded"),
        ("int luma_interface_version(void) { return -1; }", "has interface -1 and must have"),
    ],
)
def test_another_version_is_refused(tmp_path: Path, source: str, message: str) -> None:
    path = tmp_path / "_native.so"
    command = ["cc", "-shared", "-x", "c", "-", "-o", str(path)]
    subprocess.run(command, input=source.encode(), check=True)
    with pytest.raises(BackendUnavailableError, match=message):
        NativeLibrary(path)


def test_unknown_instruction_sets_are_refused() -> None:
    with pytest.raises(BackendUnavailableError, match="instruction_set='mmx'"):
        cpu.encode(Luma16M(), torch.ones(64), instruction_set="mmx")


def test_a_chosen_instruction_set_is_used_until_another_is() -> None:
    slowest = native_library().instruction_sets[0]
    used: list[int] = []
    handle = native_library()._library

    class Recording:
        def luma_encode(self, coding: object, instruction_set: int, threads: int) -> None:
            used.append(instruction_set)
            handle.luma_encode(coding, instruction_set, threads)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_library(), "_library", Recording())
        cpu.use_instruction_set(slowest)
        cpu.encode(Luma16M(), torch.ones(64))
        cpu.use_instruction_set(None)
        cpu.encode(Luma16M(), torch.ones(64))
    assert used == [0, len(native_library().instruction_sets) - 1]
    with pytest.raises(BackendUnavailableError, match="instruction_set='mmx'"):
        cpu.use_instruction_set("mmx")


@pytest.mark.parametrize(
    "tensor",
    [torch.empty(4, device="meta"), FakeTensorMode().from_tensor(torch.empty(4))],
    ids=["meta", "fake"],
)
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_no_address_but_of_the_cpus_memory_gets_to_the_library(tensor: torch.Tensor) -> None:
    with pytest.raises(BackendUnavailableError, match="without memory of the CPU"):
        address(tensor)


@pytest.mark.gpu
def test_no_address_of_a_gpu_gets_to_the_library() -> None:
    with pytest.raises(BackendUnavailableError, match="device cuda:0"):
        address(torch.empty(4, device="cuda"))


def test_a_place_to_decode_to_that_has_no_memory_is_refused() -> None:
    codec = Luma16M()
    stored = backends.encode(codec, torch.ones(4, 256))
    with pytest.raises(BackendUnavailableError, match="without memory of the CPU"):
        cpu.decode(codec, stored, (4, 256), out=torch.empty(4, 256, device="meta"))
