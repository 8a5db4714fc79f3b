"""Promises of the n-bit codecs' fused step that only a GPU can show, at full size."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from luma_core import TurboAdam
from luma_core.codecs.packed import unpack

pytest.importorskip("triton")
pytestmark = pytest.mark.gpu

PRESETS = pytest.mark.parametrize("preset", ["5bit", "8bit"])
SHAPES = [(4096, 2048), (1000, 3000), (777, 300), (3_000_001,), (2048,)]


def optimizers(dtype: torch.dtype, **options: Any) -> tuple[TurboAdam, TurboAdam]:
    """Return twins over equal parameters, the first of them fused."""
    torch.manual_seed(0)
    values = [torch.randn(shape, device="cuda").to(dtype) for shape in SHAPES]
    fused, eager = (
        TurboAdam([nn.Parameter(x.clone()) for x in values], seed=1, backend=name, **options)
        for name in ("triton", "pytorch")
    )
    return fused, eager


def params(optimizer: TurboAdam) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def fill(step: int, *twins: TurboAdam) -> None:
    generator = torch.Generator("cuda").manual_seed(step)
    for group in zip(*(params(optimizer) for optimizer in twins), strict=True):
        shape, dtype = group[0].shape, group[0].dtype
        grad = torch.randn(shape, device="cuda", generator=generator)
        grad *= torch.randn(shape, device="cuda", generator=generator).exp_() * 1e-2
        for param in group:
            if param.grad is None:
                param.grad = torch.empty_like(param)
            param.grad.copy_(grad.to(dtype))


@PRESETS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_steps_from_equal_state_equal_the_eager_ones(dtype: torch.dtype, preset: str) -> None:
    """Codes are at most 1 apart on 1 element in 1000, where the block's scale is the same."""
    fused, eager = optimizers(dtype, preset=preset, lr=1e-3)
    for step in range(3):
        fill(step, fused, eager)
        fused.step()
        eager.step()
        for a, b in zip(params(fused), params(eager), strict=True):
            left, right = fused.state[a], eager.state[b]
            for moment, codec in fused.codecs(a, fused.param_groups[0]).items():
                fields = [key for key in left if key.startswith(f"{moment}.")]
                codes = f"{moment}.codes"
                if codes not in fields:
                    continue
                pairs = [(left[key], right[key]) for key in fields if key != codes]
                same = torch.stack([x == y for x, y in pairs]).all(dim=0)
                assert float((~same).double().mean()) <= 1e-3, moment
                bits = codec.bits  # type: ignore[attr-defined]
                apart = (unpack(left[codes], bits) - unpack(right[codes], bits)).abs()
                apart = apart.reshape(same.numel(), -1)[same.reshape(-1)]
                assert int(apart.max()) <= 1, codes
                assert float((apart > 0).double().mean()) <= 1e-3, codes
            close = (a - b).abs() <= 1e-5 + (1e-5 if dtype == torch.float32 else 2**-7) * b.abs()
            assert float((~close).double().mean()) <= 1e-3
            a.data.copy_(b.data)
            for key, field in right.items():
                left[key].copy_(field)


@PRESETS
def test_a_captured_graph_replays_the_uncaptured_steps(preset: str) -> None:
    lrs = [torch.tensor(1e-3, device="cuda") for _ in range(2)]
    twins = [optimizers(torch.bfloat16, preset=preset, lr=lr, capturable=True)[0] for lr in lrs]
    stream = torch.cuda.Stream()
    fill(0, *twins)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for optimizer in twins:
            optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        twins[1].step()
    for step in range(1, 5):
        fill(step, *twins)
        for lr in lrs:
            lr.fill_(1e-3 / (step + 1))
        twins[0].step()
        graph.replay()
    for a, b in zip(*(params(optimizer) for optimizer in twins), strict=True):
        assert torch.equal(a, b)
        for key, field in twins[0].state[a].items():
            assert torch.equal(field, twins[1].state[b][key]), key


@PRESETS
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_step_never_waits_and_needs_no_memory(preset: str) -> None:
    fused, _ = optimizers(torch.float32, preset=preset)
    for step in range(2):
        fill(step, fused)
        fused.step()
    fill(2, fused)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            fused.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    elements = sum(param.numel() for param in params(fused))
    assert (torch.cuda.max_memory_allocated() - before) / elements <= 0.01


@PRESETS
def test_a_tensor_of_more_than_two_to_the_31_elements(preset: str) -> None:
    count = 2**31 + 3 * 2**20 + 77
    param = nn.Parameter(torch.ones(count, device="cuda", dtype=torch.bfloat16))
    param.grad = torch.ones_like(param)
    optimizer = TurboAdam([param], lr=0.5, weight_decay=0.0, seed=1, preset=preset)
    optimizer.step()
    assert float(param.detach()[-200:].float().mean()) == pytest.approx(0.5, abs=0.01)
    assert float(param.detach()[:200].float().mean()) == pytest.approx(0.5, abs=0.01)
    for key, field in optimizer.state[param].items():
        if field.dim() and not key.endswith("mantissa"):
            assert field[-64:].count_nonzero() > 0, key  # the last block is padded
            assert bool((field != 0)[: field.numel() // 2].any()), key
