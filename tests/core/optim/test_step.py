"""A LUMA step: equals AdamW, is deterministic, small in memory, and works where users need it."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from luma_core import LUMA
from luma_core.codecs import FP32
from luma_core.optim import CompressedOptimizer
from luma_core.rules import AdamWRule

Make = Callable[..., nn.Module]
Train = Callable[..., float]


class PlainAdamW(CompressedOptimizer):
    """The rule with float32 state: what remains is the rule alone."""

    algorithm = "adamw"
    rule = AdamWRule()

    def group_codecs(self, group: object) -> dict[str, dict[str, object]]:
        return {moment: FP32().to_dict() for moment in self.rule.moment_names}


def plain_adamw(model: nn.Module, **options: object) -> PlainAdamW:
    defaults = {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.01,
        "min_compress_elements": 0,
        "stochastic_rounding": True,
        "nonfinite": "skip",
        "maximize": False,
        **options,
    }
    return PlainAdamW(model.named_parameters(), defaults, backend="auto", seed=1)


def largest_difference(a: nn.Module, b: nn.Module) -> float:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max(float((p - q).detach().abs().max()) for p, q in pairs)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"maximize": True},
        {"weight_decay": 0.0},
        {"betas": (0.5, 0.9), "eps": 1e-6, "lr": 0.01},
        {"lr": torch.tensor(0.002)},
    ],
    ids=str,
)
def test_the_rule_is_adamw(make_model: Make, options: dict[str, object]) -> None:
    ours, theirs = make_model(), make_model()
    mine = plain_adamw(ours, **options)
    reference = torch.optim.AdamW(theirs.parameters(), **options)  # type: ignore[arg-type]
    for _ in range(20):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = torch.randn_like(p) * 0.01
            q.grad = p.grad.clone()
        mine.step()
        reference.step()
    assert largest_difference(ours, theirs) < 1e-6


@pytest.mark.parametrize("block_size", [128, 48, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_training_follows_adamw(
    make_model: Make, train: Train, dtype: torch.dtype, block_size: int | None
) -> None:
    ours, theirs = make_model(dtype=dtype), make_model(dtype=torch.float32)
    eps = 1e-8
    mine = train(ours, LUMA(ours.parameters(), 3e-3, eps=eps, block_size=block_size, seed=1), 60)
    reference = train(theirs, torch.optim.AdamW(theirs.parameters(), 3e-3, eps=eps), 60)
    assert mine == pytest.approx(reference, rel=0.01 if dtype == torch.float32 else 0.03)


def test_state_is_stored_in_the_documented_tensors(make_model: Make, train: Train) -> None:
    model = make_model()
    optimizer = LUMA(model.named_parameters(), seed=1)
    train(model, optimizer, 1)
    hidden = optimizer.state[model.hidden.weight]  # type: ignore[index]
    assert {key: (value.dtype, tuple(value.shape)) for key, value in hidden.items()} == {
        "step": (torch.int64, ()),
        "noise_key": (torch.int64, ()),
        "nonfinite": (torch.int64, ()),
        "exp_avg.codes": (torch.int16, (70, 288)),
        "exp_avg.exponent": (torch.uint8, (70, 3)),
        "exp_avg_sq.codes": (torch.int16, (70, 288)),
        "exp_avg_sq.exponent": (torch.uint8, (70, 3)),
    }
    assert "exp_avg.value" in optimizer.state[model.hidden.bias]  # type: ignore[index]
    assert "exp_avg.value" in optimizer.state[model.conv.weight]  # type: ignore[index]


def test_the_seed_comes_from_torchs_generator_where_it_is_asked_for(make_model: Make) -> None:
    seeds = []
    for manual in (1, 1, 2):
        model = make_model()
        torch.manual_seed(manual)
        seeds.append(LUMA(model.parameters(), seed="torch").param_groups[0]["seed"])
    assert seeds[0] == seeds[1] != seeds[2]
    assert {type(seed) for seed in seeds} == {int}


def test_noise_of_one_parameter_does_not_depend_on_the_others(
    make_model: Make, train: Train
) -> None:
    """The same parameter in another order or group draws the same noise, by its name."""
    a, b = make_model(), make_model()
    first = LUMA(a.named_parameters(), seed=2)
    second = LUMA(reversed(list(b.named_parameters())), seed=2)
    train(a, first, 5)
    train(b, second, 5)
    assert largest_difference(a, b) == 0


@pytest.mark.parametrize("shape", [(), (0,), (0, 40), (3, 0), (1,), (129,), (33, 1)], ids=str)
@pytest.mark.parametrize("block_size", [128, None])
def test_odd_shapes_step(shape: tuple[int, ...], block_size: int | None) -> None:
    param, twin = (nn.Parameter(torch.ones(shape)) for _ in range(2))
    ours = LUMA([param], block_size=block_size, min_compress_elements=0, seed=0)
    theirs = torch.optim.AdamW([twin])
    for _ in range(3):
        param.grad = torch.full(shape, 0.5)
        twin.grad = torch.full(shape, 0.5)
        ours.step()
        theirs.step()
    torch.testing.assert_close(param, twin, rtol=1e-5, atol=1e-6)


def test_closures_missing_gradients_and_added_groups() -> None:
    a, b, c = (nn.Parameter(torch.ones(4, 64)) for _ in range(3))
    optimizer = LUMA([a, b], lr=0.1, seed=0)

    def closure() -> float:
        optimizer.zero_grad()
        loss = a.sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 256.0
    assert b not in optimizer.state
    optimizer.add_param_group({"params": [c], "lr": 0.0, "weight_decay": 0.0, "block_size": 32})
    c.grad = torch.ones_like(c)
    optimizer.step()
    assert torch.equal(c, torch.ones(4, 64))
    assert optimizer.state[c]["exp_avg.exponent"].shape == (4, 2)
    assert optimizer.parameter_names() == ["param.0", "param.1", "param.2"]


def test_learning_rate_schedulers_and_tensor_lr() -> None:
    param = nn.Parameter(torch.zeros(2, 64))
    optimizer = LUMA([param], lr=torch.tensor(1.0), weight_decay=0.0, seed=0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step else 1.0)
    param.grad = torch.ones_like(param)
    optimizer.step()
    schedule.step()
    before = param.detach().clone()
    optimizer.step()
    assert float(before.mean()) == pytest.approx(-1.0, rel=1e-4)
    assert torch.equal(param, before)


def test_grad_scaler_skips_overflowed_steps_and_autocast_works(make_model: Make) -> None:
    model = make_model()
    optimizer = LUMA(model.parameters(), lr=1e-3, seed=0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    x = torch.randn(4, 3, 8, 8)
    for poison in (False, True, False):
        before = copy.deepcopy(model)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(x).float().square().mean()
        scaler.scale(loss).backward()
        if poison:
            model.out.weight.grad[0, 0] = torch.inf  # type: ignore[index,union-attr]
        scaler.step(optimizer)
        scaler.update()
        assert (largest_difference(before, model) == 0) is poison
    assert int(optimizer.state[model.out.weight]["step"]) == 2  # type: ignore[index]
    assert scaler.get_scale() == 2.0**15


def test_optimizers_pickle_and_deepcopy(make_model: Make, train: Train) -> None:
    model = make_model()
    optimizer = LUMA(model.parameters(), block_size=64, seed=0)
    train(model, optimizer, 2)
    twin_model, twin = pickle.loads(pickle.dumps((model, optimizer)))  # noqa: S301
    train(model, optimizer, 2, start=2)
    train(twin_model, twin, 2, start=2)
    assert largest_difference(model, twin_model) == 0
    twin.add_param_group({"params": [nn.Parameter(torch.ones(2, 64))]})
    assert twin.param_groups[-1]["codecs"]["exp_avg"]["block_size"] == 64


GPT2_SHAPES = [
    (50257, 768),
    (1024, 768),
    *[
        shape
        for _ in range(12)
        for shape in [
            (768,),
            (768,),
            (2304, 768),
            (2304,),
            (768, 768),
            (768,),
            (768,),
            (768,),
            (3072, 768),
            (3072,),
            (768, 3072),
            (768,),
        ]
    ],
    (768,),
    (768,),
]


@pytest.mark.parametrize("block_size", [128, None])
def test_state_of_gpt2_124m_is_at_most_4_10_bytes_per_parameter(block_size: int | None) -> None:
    """Counts every tensor of the state, as the optimizer itself creates it."""
    params = [nn.Parameter(torch.empty(shape, device="meta")) for shape in GPT2_SHAPES]
    elements = sum(param.numel() for param in params)
    assert elements == 124_439_808
    optimizer = LUMA(params, block_size=block_size, seed=0)
    optimizer.init_state()
    total = sum(
        tensor.numel() * tensor.element_size()
        for state in optimizer.state.values()
        for tensor in state.values()
    )
    assert 4.0 < total / elements <= 4.10


def test_a_step_of_a_large_tensor_needs_at_most_64_mib() -> None:
    """Peak resident memory over a step of 32 Mi elements (128 MiB in float32)."""
    param = nn.Parameter(torch.zeros(4096, 8192))
    param.grad = torch.full_like(param, 0.5)
    optimizer = LUMA([param], seed=0)
    optimizer.step()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    optimizer.step()
    assert resident("VmHWM") - before < 64 * 2**20


def resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
