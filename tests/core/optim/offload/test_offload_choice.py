"""Options that cannot work are refused, and ``auto`` decides by what the machine has."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from luma_core import LUMA
from luma_core.errors import ConfigurationError
from luma_core.optim.offload import arena as arenas
from luma_core.optim.offload import choice, offloader
from luma_core.optim.offload.arena import HostArena
from luma_core.optim.offload.choice import Link, Load, Machine, choose_mode, load_of
from luma_core.optim.offload.host_memory import available_host_bytes
from tests.optimizers import CLASSES

from .offloaded import assert_same, bits, named_parameters, resident, take_steps

GIB = 1 << 30


@pytest.mark.parametrize("build", CLASSES)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offload": "gpu"}, "offload='gpu' must be None or one of 'host', 'disk'"),
        ({"offload": "disk"}, "offload='disk' needs offload_directory"),
        ({"offload_directory": "/x"}, "offload_directory='/x' has no meaning with offload=None"),
        ({"offload": "host", "offload_directory": "/x"}, "has no meaning with offload='host'"),
        ({"offload": "disk", "offload_directory": 3}, "offload_directory=3 must be a str"),
        ({"offload": "host", "offload_buffer_bytes": 1000}, "offload_buffer_bytes=1000 must be"),
        ({"offload": "host", "offload_buffer_bytes": 1e9}, "offload_buffer_bytes=1000000000.0"),
        ({"offload": "host", "offload_buffer_bytes": True}, "offload_buffer_bytes=True"),
    ],
)
def test_options_that_cannot_work(build: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match="offload") as caught:
        build([("w", nn.Parameter(torch.zeros(4, 4)))], **options)
    assert message in str(caught.value)
    assert caught.value.hint


def load(state_gib: float, *, params_gib: float = 8.0) -> Load:
    return Load(int(state_gib * GIB), int(params_gib * GIB), int(params_gib * GIB / 2))


def machine(**changes: Any) -> Machine:
    found = {
        "device_bytes": 40 * GIB,
        "host_bytes": 100 * GIB,
        "link": Link(to_device=50e9, to_host=50e9, both=40e9),
        "steps_per_second": 5e9,
    }
    return Machine(**{**found, **changes})


@pytest.mark.parametrize(
    ("state_gib", "changes", "directory", "mode", "why"),
    [
        (10.0, {}, False, None, "no more than 25% of the device's 40.0 GiB"),
        (10.1, {}, False, "host", "both ways takes 0.271 s a step, stepping on the CPU 0.859 s"),
        (80.1, {}, True, "disk", "more than 80% of the host's 100.0 GiB"),
        (16.0, {"link": Link(1e9, 50e9, 1e9)}, False, "cpu-step", "takes 17.180 s a step"),
        (16.0, {"link": Link(1e9, 1e9, 1e9)}, False, "host", "on the CPU 17.180 s"),
        (16.0, {"link": Link(1e9, 50e9, 1e9), "alone": False}, False, "host", "step alike"),
    ],
)
def test_what_auto_chooses_for_a_device(
    state_gib: float, changes: dict[str, Any], directory: bool, mode: str | None, why: str
) -> None:
    found, reason = choose_mode(load(state_gib), machine(**changes), directory=directory)
    assert found == mode
    assert why in reason


def test_auto_needs_a_directory_where_state_fits_nowhere() -> None:
    with pytest.raises(
        ConfigurationError, match=r"81\.00 GiB of state fit neither the device"
    ) as e:
        choose_mode(load(81.0), machine(), directory=False)
    assert "offload_directory" in e.value.hint


def test_auto_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "luma_core")
    named = named_parameters()
    assert LUMA(named, offload="auto").offloader is None
    assert "chose None: the parameters are on the CPU, and their state beside" in caplog.text
    assert LUMA(named, offload="auto", offload_directory=tmp_path).offloader is None
    monkeypatch.setattr(choice, "available_host_bytes", lambda: 1 << 20)
    optimizer = LUMA(named, lr=1e-2, seed=3, offload="auto", offload_directory=tmp_path)
    assert optimizer.offloader is not None
    assert optimizer.offloader.mode == "disk"
    assert "chose 'disk': state takes" in caplog.text
    take_steps(named, optimizer, range(2))
    assert_same(bits(named, optimizer), resident("luma", 2))


@pytest.mark.parametrize("build", CLASSES)
def test_the_size_of_state_is_known_before_there_is_any(build: Any) -> None:
    named = named_parameters(torch.bfloat16)
    optimizer = build(named)
    expected = load_of(optimizer)
    assert not optimizer.state
    take_steps(named, optimizer, range(1))
    stored = sum(
        value.nbytes
        for entry in optimizer.state.values()
        for key, value in entry.items()
        if "." in key
    )
    numel = sum(param.numel() for _, param in named)
    assert expected == Load(stored, 2 * numel, numel)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 800),
        ({"memory.max": "max\n", "memory.current": "5\n"}, 800),
        ({"memory.max": "500\n", "memory.current": "300\n"}, 200),
        (
            {
                "memory.max": "500",
                "memory.current": "300",
                "memory.stat": "anon 7\ninactive_file 40\n",
            },
            240,
        ),
        ({"memory.max": "9000", "memory.current": "300"}, 800),
        (
            {
                "memory/memory.limit_in_bytes": "500",
                "memory/memory.usage_in_bytes": "100",
                "memory/memory.stat": "total_inactive_file 50\n",
            },
            450,
        ),
    ],
)
def test_memory_of_a_container_is_what_its_limit_leaves(
    files: dict[str, str], expected: int, tmp_path: Path
) -> None:
    everything = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    everything["proc/meminfo"] = "MemTotal: 3 kB\nMemAvailable:       1 kB\n"
    for name, text in everything.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = available_host_bytes(tmp_path)
    assert found == (1024 if expected == 800 else expected)


def test_memory_of_this_machine() -> None:
    assert 1 << 20 < available_host_bytes() < 1 << 50


def test_memory_that_cannot_be_pinned_is_told_once_and_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    arenas.warn_not_pinned.cache_clear()
    monkeypatch.setattr(arenas, "register", lambda address, size: "cudaHostRegister: error 2")
    made: list[HostArena] = []

    def pinning(size: int, *, pin: bool) -> HostArena:
        made.append(HostArena(size, pin=True))
        return made[-1]

    monkeypatch.setattr(offloader, "HostArena", pinning)
    monkeypatch.setattr(offloader.Offloader, "takes", lambda *_: True)
    for _ in range(2):
        named = named_parameters()
        optimizer = LUMA(named, lr=1e-2, seed=3, offload="host")
        take_steps(named, optimizer, range(2))
        assert_same(bits(named, optimizer), resident("luma", 2))
    assert [arena.pinned for arena in made] == [False, False]
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "cannot be pinned (cudaHostRegister: error 2)" in warnings[0]
    arenas.warn_not_pinned.cache_clear()


def test_more_memory_than_there_is_is_a_typed_error() -> None:
    with pytest.raises(ConfigurationError, match="cannot be had for offloaded state"):
        HostArena(1 << 60, pin=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a device")
@pytest.mark.parametrize("mode", ["host", "cpu-step"])
def test_on_the_cpu_state_stays_beside_the_parameters(mode: str) -> None:
    named = named_parameters()
    optimizer = LUMA(named, lr=1e-2, seed=3, offload=mode)
    take_steps(named, optimizer, range(5))
    assert optimizer.offloader is not None
    assert not optimizer.offloader._arenas
    assert not optimizer.offloader._pipelines
    assert_same(bits(named, optimizer), resident("luma", 5))


def test_the_speed_of_the_cpu_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    choice.measured_cpu_step.cache_clear()
    assert 1e5 < choice.measured_cpu_step() < 1e12
    monkeypatch.setattr(choice, "_PROBE_ELEMENTS", 0)
    assert choice.measured_cpu_step() > 0
