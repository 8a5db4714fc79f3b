"""Offloaded state gives the bits of resident state, in every mode, and takes no more memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from luma_core import LUMA, TurboAdam
from luma_core.optim import CompressedOptimizer, step_in_backward
from luma_core.optim.offload import Offloader
from luma_core.optim.offload.pipeline import Pipeline
from luma_core.optim.offload.streamed import StreamedPlan

from .offloaded import (
    BUFFER_BYTES,
    MODES,
    OPTIMIZERS,
    assert_same,
    bits,
    give_gradients,
    named_parameters,
    resident,
    take_steps,
)

Options = dict[str, Any]


@pytest.fixture(autouse=True)
def offload_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every mode offload parameters of the CPU, too, which have no link to cross."""
    monkeypatch.setattr(Offloader, "takes", lambda *_: True)


@pytest.fixture(params=MODES)
def options(request: pytest.FixtureRequest, tmp_path: Path) -> Options:
    """Return the options of each mode in turn."""
    found: Options = {"offload": request.param, "offload_buffer_bytes": BUFFER_BYTES}
    if request.param == "disk":
        found["offload_directory"] = tmp_path / "state"
    return found


def pipelines(optimizer: CompressedOptimizer) -> list[Pipeline]:
    assert optimizer.offloader is not None
    return list(optimizer.offloader._pipelines.values())


def pieces(optimizer: CompressedOptimizer) -> dict[str, int]:
    """Return the number of pieces of each parameter in a streamed step."""
    found: dict[str, int] = {}
    for plan in optimizer._stepper._plan._used:  # type: ignore[union-attr]
        assert isinstance(plan, StreamedPlan)
        for group in plan._groups:
            for piece, _ in group.cuts:
                found[piece.stepped.name] = found.get(piece.stepped.name, 0) + 1
    return found


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_bits_are_those_of_resident_state(kind: str, options: Options) -> None:
    named = named_parameters()
    optimizer = OPTIMIZERS[kind](named, lr=1e-2, seed=3, **options)
    take_steps(named, optimizer, range(5))
    assert_same(bits(named, optimizer), resident(kind, 5))


def test_bfloat16_is_rounded_as_beside_the_parameters(options: Options) -> None:
    named = named_parameters(torch.bfloat16)
    optimizer = LUMA(named, lr=1e-2, seed=3, **options)
    take_steps(named, optimizer, range(3))
    assert_same(bits(named, optimizer), resident("luma", 3, torch.bfloat16))


def test_the_eager_backend_steps_pieces_alike(tmp_path: Path) -> None:
    named = named_parameters()
    optimizer = LUMA(
        named,
        lr=1e-2,
        seed=3,
        backend="pytorch",
        offload="disk",
        offload_directory=tmp_path,
        offload_buffer_bytes=BUFFER_BYTES,
    )
    take_steps(named, optimizer, range(2))
    assert_same(bits(named, optimizer), resident("luma", 2, backend="pytorch"))


def test_parameters_are_cut_by_rows_and_within_rows(tmp_path: Path) -> None:
    named = named_parameters()
    optimizer = LUMA(named, offload="host", offload_buffer_bytes=BUFFER_BYTES)
    take_steps(named, optimizer, range(1))
    cuts = list(pieces(optimizer).values())
    assert all(count > 1 for count in (cuts[0], cuts[3], cuts[4], cuts[5]))
    assert all(count == 1 for count in (cuts[1], cuts[2], cuts[6], cuts[7]))
    shapes = {
        piece.shape
        for group in optimizer._stepper._plan._used[0]._groups  # type: ignore[union-attr]
        for piece, _ in group.cuts
        if piece.stepped.name == named[0][0]
    }
    assert all(len(shape) == 2 and shape[1] == 160 for shape in shapes)


@pytest.mark.parametrize("kind", ["luma", "turboadam", "turboadam-8bit"])
@pytest.mark.parametrize("mode", ["host", "disk"])
def test_memory_for_state_is_no_more_than_allowed(kind: str, mode: str, tmp_path: Path) -> None:
    directory = {"offload_directory": tmp_path} if mode == "disk" else {}
    named = named_parameters()
    named += [(f"more.{i}", nn.Parameter(torch.randn(256, 1100))) for i in range(2)]
    optimizer = OPTIMIZERS[kind](
        named, offload=mode, offload_buffer_bytes=BUFFER_BYTES, **directory
    )
    take_steps(named, optimizer, range(2))
    (pipeline,) = pipelines(optimizer)
    state = sum(v.nbytes for entry in optimizer.state.values() for v in entry.values())
    assert 0 < pipeline.memory_bytes <= BUFFER_BYTES
    assert kind != "luma" or state > 2 * BUFFER_BYTES


def test_what_cannot_be_cut_gets_two_slots_of_its_size() -> None:
    param = nn.Parameter(torch.randn(512, 1024))
    optimizer = LUMA(
        [("w", param)], block_size=None, offload="host", offload_buffer_bytes=BUFFER_BYTES
    )
    param.grad = torch.ones_like(param)
    optimizer.step()
    (pipeline,) = pipelines(optimizer)
    moments = 2 * 2 * param.numel()
    assert 2 * moments <= pipeline.memory_bytes < 2.1 * moments


def test_state_is_in_one_block_outside_of_the_parameters(tmp_path: Path) -> None:
    named = named_parameters()
    optimizer = LUMA(named, offload="disk", offload_directory=tmp_path)
    take_steps(named, optimizer, range(1))
    storages = {
        value.untyped_storage().data_ptr()
        for entry in optimizer.state.values()
        for key, value in entry.items()
        if "." in key
    }
    assert len(storages) == 1


def test_a_group_added_later_and_frozen_parameters(options: Options) -> None:
    found = []
    for chosen in ({}, options):
        named = named_parameters()
        optimizer = LUMA(named[:4], lr=1e-2, seed=3, **chosen)
        take_steps(named, optimizer, range(2))
        optimizer.add_param_group({"params": named[4:], "lr": 3e-3})
        named[0][1].requires_grad_(requires_grad=False)
        for step in (2, 4):
            give_gradients(named, step)
            named[0][1].grad = None
            optimizer.step()
        found.append(bits(named, optimizer))
    assert_same(found[1], found[0])


def test_a_schedule_and_clipping_from_outside(options: Options) -> None:
    found = []
    for chosen in ({}, options):
        named = named_parameters()
        optimizer = LUMA(named, lr=1e-2, seed=3, **chosen)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        for step in range(3):
            give_gradients(named, step)
            torch.nn.utils.clip_grad_norm_([param for _, param in named], 1.0)
            optimizer.step()
            schedule.step()
        found.append(bits(named, optimizer))
    assert optimizer.param_groups[0]["lr"] == 1e-2 / 8
    assert_same(found[1], found[0])


def test_a_grad_scaler_skips_and_unscales(options: Options) -> None:
    found = []
    for chosen in ({}, options):
        named = named_parameters()
        optimizer = LUMA(named, lr=1e-2, seed=3, **chosen)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        scaler.scale(torch.ones(()))
        for step in range(3):
            give_gradients(named, step)
            if step == 1:
                grad = named[0][1].grad
                assert grad is not None
                grad[0, 0] = float("inf")
            scaler.step(optimizer)
            scaler.update()
        found.append(bits(named, optimizer))
        assert scaler.get_scale() == 4.0
    assert int(found[1]["0 step"]) == 2
    assert_same(found[1], found[0])


def test_gradients_that_are_not_finite_count_alike(options: Options) -> None:
    found = []
    for chosen in ({}, options):
        named = named_parameters()
        optimizer = LUMA(named, seed=3, **chosen)
        for step in range(2):
            give_gradients(named, step)
            for _, param in named[:6]:
                assert param.grad is not None
                param.grad.view(-1)[[0, -1]] = float("nan")
            optimizer.step()
        found.append(bits(named, optimizer))
    assert int(found[1]["0 nonfinite"]) == 4
    assert_same(found[1], found[0])


def test_steps_within_backward(
    options: Options, make_model: Callable[..., nn.Module], train: Callable[..., float]
) -> None:
    found = []
    for chosen in ({}, options):
        model = make_model()
        optimizer = TurboAdam(model.named_parameters(), seed=3, **chosen)
        step_in_backward(model, optimizer)
        train(model, optimizer, 3)
        found.append(bits(list(model.named_parameters()), optimizer))
    assert_same(found[1], found[0])


def test_stepping_in_backward_for_a_while(options: Options) -> None:
    """Counters of pieces and what is in slots are those of now, on the way there and back."""

    def backward(model: nn.Module, step: int) -> None:
        generator = torch.Generator().manual_seed(step)
        model(torch.randn(4, 64, generator=generator)).square().mean().backward()

    found = []
    for chosen in ({}, options):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 2000), nn.Linear(2000, 300))
        optimizer = LUMA(model.named_parameters(), lr=1e-2, seed=3, **chosen)
        for step in range(7):
            if step == 2:
                handle = step_in_backward(model, optimizer)
            if step == 5:
                handle.remove()
            backward(model, step)
            if not 2 <= step < 5:
                optimizer.step()
            optimizer.zero_grad()
        found.append(bits(list(model.named_parameters()), optimizer))
    assert_same(found[1], found[0])


def test_gradients_are_free_after_the_step(options: Options) -> None:
    """What the optimizer keeps between steps must not hold the memory of gradients."""
    named = named_parameters()
    optimizer = LUMA(named, **options)
    freed = []
    give_gradients(named, 0)
    for _, param in named:
        assert param.grad is not None
        freed.append(torch.UntypedStorage._weak_ref(param.grad.untyped_storage()))
    optimizer.step()
    for _, param in named:
        param.grad = None
    assert all(map(torch.UntypedStorage._expired, freed))


def test_gradients_in_another_memory_order(options: Options) -> None:
    found = []
    for chosen in ({}, options):
        param = nn.Parameter(torch.linspace(-1, 1, 512 * 700).view(512, 700))
        optimizer = LUMA([("w", param)], lr=1e-2, seed=3, **chosen)
        for step in range(2):
            generator = torch.Generator().manual_seed(step)
            param.grad = torch.randn(700, 512, generator=generator).t()
            optimizer.step()
        found.append(bits([("w", param)], optimizer))
    assert_same(found[1], found[0])
