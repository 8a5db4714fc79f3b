"""Offloaded state on a GPU: equal bits, bounded device memory, no waiting, what is refused."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from luma_core import LAMB, LUMA, AdamMini, TurboAdam
from luma_core.errors import ConfigurationError
from luma_core.optim import CompressedOptimizer, step_in_backward
from luma_core.optim.offload import arena

pytest.importorskip("triton")
pytestmark = pytest.mark.gpu

MIB = 1 << 20
MODES = ["host", "disk"]
KINDS: dict[str, Callable[..., CompressedOptimizer]] = {
    "LUMA": LUMA,
    "LUMA block_size=None": lambda p, **o: LUMA(p, block_size=None, **o),
    "TurboAdam": TurboAdam,
    "AdamMini": lambda p, **o: AdamMini([(f"mlp.{n}", q) for n, q in p], **o),
    "LAMB": LAMB,
    "LAMB max_grad_norm": lambda p, **o: LAMB(p, max_grad_norm=1.0, **o),
}


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    inner = [nn.Linear(1000, 1000), nn.GELU(), nn.Linear(1000, 3000), nn.Linear(3000, 1000)]
    return nn.Sequential(nn.Linear(256, 1000), *inner, nn.Linear(1000, 7)).to("cuda", dtype)


def backward(net: nn.Module, step: int) -> None:
    generator = torch.Generator("cuda").manual_seed(step)
    dtype = next(net.parameters()).dtype
    x = torch.randn(32, 256, generator=generator, device="cuda").to(dtype)
    net(x).float().square().mean().backward()


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterator[int] | range) -> None:
    for step in steps:
        optimizer.zero_grad()
        backward(net, step)
        optimizer.step()


def options(mode: str, folder: Path) -> dict[str, Any]:
    where = {"offload_directory": folder} if mode == "disk" else {}
    return {"offload": mode, "offload_buffer_bytes": 4 * MIB, **where}


def assert_same(a: tuple[nn.Module, Any], b: tuple[nn.Module, Any]) -> None:
    for p, q in zip(a[0].parameters(), b[0].parameters(), strict=True):
        assert torch.equal(p, q)
    for x, y in zip(a[1].parameter_states(), b[1].parameter_states(), strict=True):
        assert x.step == y.step
        assert all(torch.equal(x.fields[key].cpu(), y.fields[key].cpu()) for key in x.fields)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bits_are_those_of_resident_state(
    kind: str, mode: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    runs = []
    for extra in ({}, options(mode, tmp_path)):
        net = model(dtype)
        optimizer = KINDS[kind](list(net.named_parameters()), seed=1, lr=1e-2, **extra)
        train(net, optimizer, range(6))
        runs.append((net, optimizer))
    assert_same(*runs)


@pytest.mark.parametrize("mode", MODES)
def test_state_is_brought_while_backward_goes_on(mode: str, tmp_path: Path) -> None:
    runs = []
    for extra in ({}, options(mode, tmp_path)):
        net = model()
        optimizer = LUMA(net.named_parameters(), seed=1, lr=1e-2, **extra)
        handle = step_in_backward(net, optimizer)
        for step in range(6):
            backward(net, step)
        handle.remove()
        runs.append((net, optimizer))
    assert_same(*runs)


def test_the_device_holds_no_more_state_than_the_buffer() -> None:
    net = model()
    train(net, torch.optim.SGD(net.parameters()), range(1))
    before = torch.cuda.memory_allocated()
    optimizer = LUMA(net.named_parameters(), seed=1, offload="host", offload_buffer_bytes=8 * MIB)
    backward(net, 0)
    optimizer.step()
    backward(net, 1)
    optimizer.step()
    assert torch.cuda.memory_allocated() - before <= 8 * MIB
    state = sum(value.nbytes for s in optimizer.parameter_states() for value in s.fields.values())
    assert state > 16 * MIB


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_step_never_waits_for_the_device() -> None:
    net = model()
    optimizer = LUMA(net.named_parameters(), seed=1, offload="host", offload_buffer_bytes=4 * MIB)
    train(net, optimizer, range(2))
    torch.cuda.set_sync_debug_mode("error")
    try:
        train(net, optimizer, range(2, 5))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_steps_on_the_cpu_learn_as_those_on_the_gpu_do() -> None:
    runs = []
    for extra in ({}, {"offload": "cpu-step"}):
        net = model()
        optimizer = LUMA(net.named_parameters(), seed=1, lr=1e-3, **extra)
        train(net, optimizer, range(5))
        runs.append(net)
    for p, q in zip(runs[0].parameters(), runs[1].parameters(), strict=True):
        assert (p - q).abs().max() <= 1e-4
        assert p.device == q.device


def test_a_scaler_skips_a_step_without_waiting() -> None:
    runs = []
    for extra in ({}, {"offload": "host", "offload_buffer_bytes": 4 * MIB}):
        net = model()
        optimizer = LUMA(net.named_parameters(), seed=1, lr=1e-2, **extra)
        scaler = torch.amp.GradScaler("cuda", init_scale=4.0, growth_interval=2)
        for step in range(5):
            optimizer.zero_grad()
            generator = torch.Generator("cuda").manual_seed(step)
            x = torch.randn(32, 256, generator=generator, device="cuda")
            loss = net(x).square().mean() * (float("inf") if step == 2 else 1.0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        runs.append((net, optimizer))
    assert_same(*runs)
    assert runs[1][1].parameter_states()[0].step == 4


def test_loading_replaces_what_was_fetched_ahead() -> None:
    net = model()
    optimizer = LUMA(net.named_parameters(), seed=1, offload="host", offload_buffer_bytes=4 * MIB)
    train(net, optimizer, range(3))
    saved = {k: v.clone() for k, v in net.state_dict().items()}
    resident = LUMA(net.named_parameters(), seed=1)
    resident.load_state_dict(optimizer.state_dict())
    train(net, optimizer, range(3, 6))
    other = model()
    other.load_state_dict(saved)
    again = LUMA(other.named_parameters(), seed=1, offload="host", offload_buffer_bytes=4 * MIB)
    train(other, again, range(2))
    other.load_state_dict(saved)
    again.load_state_dict(resident.state_dict())
    train(other, again, range(3, 6))
    assert_same((net, optimizer), (other, again))


def test_memory_that_cannot_be_pinned_is_said_once_and_works(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(arena, "register", lambda address, size: "no room")
    runs = []
    with caplog.at_level(logging.WARNING):
        for extra in ({}, {"offload": "host", "offload_buffer_bytes": 4 * MIB}):
            net = model()
            optimizer = LUMA(net.named_parameters(), seed=1, lr=1e-2, **extra)
            train(net, optimizer, range(3))
            runs.append((net, optimizer))
    assert sum("cannot be pinned" in record.message for record in caplog.records) == 1
    assert_same(*runs)


# The capture that is given up has recorded nothing.
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_a_step_cannot_be_captured() -> None:
    net = model()
    optimizer = LUMA(
        net.named_parameters(),
        torch.tensor(1e-3, device="cuda"),
        capturable=True,
        offload="host",
    )
    train(net, optimizer, range(1))
    with (
        pytest.raises(ConfigurationError, match="cannot be captured"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        optimizer.step()


def test_auto_keeps_small_state_on_the_device(caplog: pytest.LogCaptureFixture) -> None:
    net = model()
    with caplog.at_level(logging.INFO, logger="luma_core"):
        optimizer = LUMA(net.named_parameters(), offload="auto")
    assert optimizer.offloader is None
    assert "offload='auto' chose" in caplog.text
