"""Promises of the fused LAMB step that only a GPU can show: graphs, no synchronisation, memory."""

import copy

import pytest
import torch
from torch import nn

from luma_core import LAMB

pytest.importorskip("triton")
pytestmark = pytest.mark.gpu

SHAPES = [(512, 256), (512,), (100, 300), (70_000,)]


def params_of(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator("cuda").manual_seed(0)
    return [
        nn.Parameter(torch.randn(shape, generator=generator, device="cuda").to(dtype))
        for shape in SHAPES
    ]


def fill(params: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator("cuda").manual_seed(step)
    for param in params:
        grad = torch.randn(param.shape, generator=generator, device="cuda") * 0.1
        if param.grad is None:
            param.grad = torch.zeros_like(param)
        param.grad.copy_(grad)


@pytest.mark.parametrize("bound", [None, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("block_size", [128, None])
def test_the_fused_step_is_taken_and_equals_the_eager_one(
    dtype: torch.dtype, block_size: int | None, bound: float | None
) -> None:
    fused, eager = params_of(dtype), params_of(dtype)
    options = {"lr": 1e-2, "seed": 1, "block_size": block_size, "max_grad_norm": bound}
    optimizers = [
        LAMB(params, backend=backend, **options)  # type: ignore[arg-type]
        for params, backend in ((fused, "triton"), (eager, "pytorch"))
    ]
    for step in range(5):
        for params, optimizer in zip((fused, eager), optimizers, strict=True):
            fill(params, step)
            optimizer.step()
    assert optimizers[0]._stepper.all_fused
    for p, q in zip(fused, eager, strict=True):
        # One code apart in a moment is 1e-3 of an update.
        tolerance = 1e-4 if dtype == torch.float32 else 2**-7
        torch.testing.assert_close(p, q, rtol=tolerance, atol=1e-4)
        if dtype != torch.float32:
            assert float((p != q).double().mean()) < 1e-2


@pytest.mark.parametrize("bound", [None, 1.0])
def test_equal_runs_are_bit_identical(bound: float | None) -> None:
    runs = []
    for _ in range(2):
        params = params_of()
        optimizer = LAMB(params, lr=1e-2, seed=1, max_grad_norm=bound)
        for step in range(5):
            fill(params, step)
            optimizer.step()
        runs.append(params)
    assert all(torch.equal(p, q) for p, q in zip(*runs, strict=True))


@pytest.mark.parametrize("bound", [None, 1.0])
def test_a_captured_graph_replays_the_uncaptured_steps(bound: float | None) -> None:
    runs = [params_of() for _ in range(2)]
    lrs = [torch.tensor(1e-3, device="cuda") for _ in runs]
    optimizers = [
        LAMB(params, lr, capturable=True, seed=1, max_grad_norm=bound)
        for params, lr in zip(runs, lrs, strict=True)
    ]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for params, optimizer in zip(runs, optimizers, strict=True):
            fill(params, 0)
            optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizers[1].step()
    for step in range(1, 6):
        for params, lr in zip(runs, lrs, strict=True):
            fill(params, step)
            lr.fill_(1e-3 / (step + 1))
        optimizers[0].step()
        graph.replay()
    assert all(torch.equal(p, q) for p, q in zip(*runs, strict=True))


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_step_never_waits_for_the_device() -> None:
    params = params_of()
    optimizer = LAMB(params, seed=1, max_grad_norm=1.0)
    for step in range(2):
        fill(params, step)
        optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(2, 5):
            optimizer.param_groups[0]["lr"] = 1e-3 / step
            optimizer.param_groups[0]["max_grad_norm"] = 1.0 / step
            for param in params:
                param.grad = torch.ones_like(param)
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_bound_acts_on_unscaled_gradients() -> None:
    scaled, plain = params_of(), params_of()
    optimizers = [LAMB(params, lr=1e-2, seed=1, max_grad_norm=1.0) for params in (scaled, plain)]
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10, growth_interval=1000)
    scaler.scale(torch.zeros((), device="cuda", requires_grad=True))
    for step in range(3):
        for params in (scaled, plain):
            fill(params, step)
        for param in scaled:
            param.grad *= 2.0**10
        scaler.step(optimizers[0])
        scaler.update()
        optimizers[1].step()
    for p, q in zip(scaled, plain, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


def test_a_step_keeps_and_needs_at_most_a_fiftieth_of_a_byte_per_parameter() -> None:
    params = [nn.Parameter(torch.ones(4096, 4096, device="cuda")) for _ in range(4)]
    optimizer = LAMB(params, seed=1, max_grad_norm=1.0)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.init_state()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    optimizer.step()
    optimizer.step()
    elements = sum(param.numel() for param in params)
    assert (torch.cuda.max_memory_allocated() - before) / elements <= 0.02


def test_optimizers_deepcopy_after_a_step() -> None:
    params = params_of()
    optimizer = LAMB(params, seed=1)
    fill(params, 0)
    optimizer.step()
    twin_params, twin = copy.deepcopy((params, optimizer))
    for some, other in ((params, optimizer), (twin_params, twin)):
        fill(some, 1)
        other.step()
    assert all(torch.equal(p, q) for p, q in zip(params, twin_params, strict=True))
