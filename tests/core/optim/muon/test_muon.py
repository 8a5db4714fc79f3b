"""Muon is what its references do, whatever is batched, split or left to AdamW."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from luma_core import AdamW, Muon
from luma_core.errors import ConfigurationError, UnsupportedParameterError
from luma_core.optim import assign_parameters
from luma_core.rules.muon import SCALES
from luma_core.rules.newton_schulz import SCHEDULES, newton_schulz

SHAPES = ((24, 40), (40, 24), (24, 40), (33, 65))
EXACT: dict[str, Any] = {"codec": "fp32", "ns_dtype": "bfloat16", "adjust_lr_fn": "original"}


def parameters(shapes: Iterable[tuple[int, ...]] = SHAPES) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape) * 0.1) for shape in shapes]


def gradients(params: Iterable[Tensor], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)


def trained(build: Callable[[Any], Any], shapes: Any = SHAPES, steps: int = 20) -> list[Tensor]:
    params = parameters(shapes)
    optimizer = build(params)
    for step in range(steps):
        gradients(params, step)
        optimizer.step()
    return [param.detach() for param in params]


def twin(params: list[nn.Parameter], step: int, state: dict[int, Any], **options: Any) -> None:
    """One step of Muon as its author writes it: momentum, iterations in bfloat16, scale."""
    mu, lr, wd = 0.95, options["lr"], options["weight_decay"]
    for index, param in enumerate(params):
        grad = param.grad
        assert grad is not None
        buffer = state.setdefault(index, torch.zeros_like(grad))
        buffer.lerp_(grad, 1 - mu)
        x = (grad.lerp(buffer, mu) if options["nesterov"] else buffer).bfloat16()
        x = x.mT if param.shape[0] > param.shape[1] else x
        x = x / x.norm().clamp(min=1e-7)
        for a, b, c in SCHEDULES[options["coefficients"]][: options.get("steps", 10)]:
            gram = x @ x.mT
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        x = x.mT if param.shape[0] > param.shape[1] else x
        with torch.no_grad():
            param.mul_(1 - lr * wd)
            param.add_(x, alpha=-lr * options["scale"](*param.shape))


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_twenty_steps_are_those_of_torch(adjust: str, nesterov: bool) -> None:
    options: dict[str, Any] = {"lr": 0.02, "weight_decay": 0.1, "nesterov": nesterov}
    own = trained(lambda p: Muon(p, **options, **{**EXACT, "adjust_lr_fn": adjust}))
    theirs = trained(lambda p: torch.optim.Muon(p, **options, adjust_lr_fn=adjust))
    for found, expected in zip(own, theirs, strict=True):
        # Their sum of parameter and update may be one fused operation: 1 ulp in each step.
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-7)


@pytest.mark.parametrize("coefficients", SCHEDULES)
@pytest.mark.parametrize("scale", SCALES)
def test_coefficients_and_scales_are_those_of_a_twin(coefficients: str, scale: str) -> None:
    scales = {
        "original": lambda m, n: math.sqrt(max(1, m / n)),
        "match_rms_adamw": lambda m, n: 0.2 * math.sqrt(max(m, n)),
        "spectral": lambda m, n: math.sqrt(max(m, n)),
        "unit_rms_norm": lambda m, n: math.sqrt(m / n),
    }
    params, state = parameters(), dict[int, Any]()
    for step in range(20):
        gradients(params, step)
        twin(
            *(params, step, state),
            lr=0.02,
            weight_decay=0.0,
            nesterov=True,
            coefficients=coefficients,
            steps=5 if coefficients == "polar_express" else 10,
            scale=scales[scale],
        )
    options = {**EXACT, "ns_coefficients": coefficients, "adjust_lr_fn": scale}
    own = trained(lambda p: Muon(p, lr=0.02, weight_decay=0.0, **options))
    for found, expected in zip(own, params, strict=True):
        torch.testing.assert_close(found, expected.detach(), rtol=0, atol=3e-6)


@pytest.mark.parametrize(
    ("coefficients", "low", "high"),
    [("keller", 0.65, 1.25), ("polar_express", 0.97, 1.03), ("deepseek", 0.97, 1.03)],
)
def test_singular_values_come_near_1(coefficients: str, low: float, high: float) -> None:
    torch.manual_seed(1)
    u, v = (torch.linalg.qr(torch.randn(48, 48))[0] for _ in range(2))
    values = torch.logspace(0, -1.5, 48)
    x = newton_schulz((u * values @ v)[None], SCHEDULES[coefficients], 1e-7)[0]
    found = torch.linalg.svdvals(x)
    assert low < float(found.min()) <= float(found.max()) < high


def test_what_else_is_in_a_batch_changes_no_bit() -> None:
    together = trained(lambda p: Muon(p, codec="luma16", seed=1), steps=3)
    params = parameters()
    for index, param in enumerate(params):
        optimizer = Muon([(f"param.{index}", param)], codec="luma16", seed=1)
        for step in range(3):
            gradients(params, step)
            optimizer.step()
        assert torch.equal(param.detach(), together[index])


def test_experts_heads_and_kernels_are_matrices_of_their_own() -> None:
    def alone(cut: Callable[[Tensor], list[Tensor]], shape: Any, **options: Any) -> None:
        (whole,) = trained(lambda p: Muon(p, codec="fp32", **options), (shape,), steps=3)
        params = [nn.Parameter(part.clone()) for part in cut(parameters((shape,))[0].detach())]
        optimizer = Muon(params, codec="fp32")
        for step in range(3):
            (like,) = parameters((shape,))
            gradients([like], step)
            assert like.grad is not None
            for param, grad in zip(params, cut(like.grad), strict=True):
                param.grad = grad.clone()
            optimizer.step()
        for found, expected in zip(cut(whole), params, strict=True):
            assert torch.equal(found.reshape(expected.shape), expected.detach())

    alone(lambda x: list(x.unbind()), (3, 24, 40))
    alone(lambda x: list(x.split(8)), (24, 40), split_rows=8)
    alone(lambda x: [x.flatten(1)], (24, 4, 3, 3))


def test_neurons_variance_evens_out_rows() -> None:
    (found,) = trained(
        lambda p: Muon(p, lr=0.02, weight_decay=0.0, neuron_beta2=0.9, **EXACT), ((24, 40),), 5
    )
    (param,) = parameters(((24, 40),))
    buffer, variance = torch.zeros(24, 40), torch.zeros(24, 1)
    for step in range(5):
        gradients([param], step)
        assert param.grad is not None
        buffer.lerp_(param.grad, 0.05)
        u = param.grad.lerp(buffer, 0.95).bfloat16()[None]
        x = newton_schulz(u, SCHEDULES["keller"], 1e-7)[0].float()
        variance = 0.9 * variance + 0.1 * x.square().mean(dim=1, keepdim=True)
        new = x / (variance.sqrt() + 1e-10)
        new *= x.norm() / (new.norm() + 1e-10)
        param.data -= 0.02 * new.bfloat16().float()
    torch.testing.assert_close(found, param.detach(), rtol=0, atol=1e-4)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embed_tokens = nn.Embedding(50, 32)
        self.up_proj = nn.Linear(32, 64)
        self.down_proj = nn.Linear(64, 32, bias=False)
        self.norm = nn.LayerNorm(32)
        self.lm_head = nn.Linear(32, 50, bias=False)


def test_names_and_shapes_say_what_steps_a_parameter() -> None:
    model = Model()
    optimizer = Muon(model.named_parameters())
    matrices = [row.name for row in optimizer.table if row.algorithm == "muon"]
    assert matrices == ["up_proj.weight", "down_proj.weight"]
    assert [group["use_muon"] for group in optimizer.param_groups] == [True, False]
    text = str(optimizer.table)
    assert "embed_tokens.weight  50x32  adamw       called 'embed_tokens'" in text
    assert "norm.weight          32     adamw       fewer than 2 dimensions" in text
    table = assign_parameters(model.named_parameters(), overrides={"up_*.weight": "adamw"})
    assert table["up_proj.weight"].algorithm == "adamw"
    assert table.to_dict()["parameters"][1]["why"] == "overrides['up_*.weight']"


def test_groups_and_lists_say_it_themselves() -> None:
    model = Model()
    matrices = [model.up_proj.weight, model.down_proj.weight]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    ways = [
        Muon(matrices, adamw_params=others, adamw_lr=0.5, adamw_weight_decay=0.0),
        Muon(
            [
                {"params": matrices, "use_muon": True},
                {"params": others, "use_muon": False, "lr": 0.5, "weight_decay": 0.0},
            ]
        ),
        Muon(
            [
                {"params": matrices, "algorithm": "muon"},
                {"params": others, "algorithm": "adamw", "lr": 0.5, "weight_decay": 0.0},
            ]
        ),
    ]
    for optimizer in ways:
        first, second = optimizer.param_groups
        assert (first["use_muon"], second["use_muon"]) == (True, False)
        assert (first["lr"], second["lr"], second["weight_decay"]) == (1e-3, 0.5, 0.0)
        assert len(first["params"]) == 2
        assert "algorithm" not in first


def test_a_mapping_gives_codecs_to_the_moments_that_a_group_has() -> None:
    def names(**options: Any) -> list[list[str]]:
        optimizer = Muon(parameters(((24, 40), (40,))), **options)
        return [[c["name"] for c in group["codecs"].values()] for group in optimizer.param_groups]

    mapping = {"momentum_buffer": "bf16", "exp_avg": "fp32", "exp_avg_sq": "fp32"}
    assert names(codec=mapping) == [["bf16"], ["fp32", "fp32"]]
    assert names(codec=mapping, neuron_beta2=0.9)[0] == ["bf16", "fp32"]
    assert names(codec={"momentum_buffer": "bf16"}) == [["bf16"], ["luma16_m", "luma16_v"]]
    assert names(codec="8bit") == [["table_m"], ["table_m", "log_v"]]
    with pytest.raises(ConfigurationError, match="must map each of"):
        names(codec={"exp_avg": "fp32"})
    with pytest.raises(ConfigurationError, match="must map each of"):
        names(codec={"momentum": "fp32"})


def test_what_is_no_matrix_moves_as_under_adamw() -> None:
    shapes = ((32,), (5,))
    options: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1, "betas": (0.9, 0.95)}
    own = trained(lambda p: Muon(p, **options), shapes, 5)
    theirs = trained(lambda p: AdamW(p, **options), shapes, 5)
    assert all(torch.equal(*pair) for pair in zip(own, theirs, strict=True))


def test_what_cannot_be_a_matrix_is_refused() -> None:
    vector = nn.Parameter(torch.zeros(5))
    for build in (
        lambda: Muon([{"params": [vector], "use_muon": True}]),
        lambda: Muon([("bias", vector)], overrides={"bias": "muon"}),
        lambda: Muon([vector], adamw_params=[nn.Parameter(torch.zeros(3))]),
    ):
        with pytest.raises(UnsupportedParameterError, match=r"of shape \[5\] is no matrix"):
            build()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.0}, "momentum=1.0 must be a number from 0 to below 1"),
        ({"ns_coefficients": "jordan"}, "ns_coefficients='jordan' must be one of 'keller'"),
        ({"ns_coefficients": [[1.0, 2.0]]}, "must be one of 'keller'"),
        ({"ns_steps": 0}, "ns_steps=0 must be an integer from 1 to 99"),
        ({"ns_dtype": "float16"}, "ns_dtype='float16' must be one of 'auto'"),
        ({"adjust_lr_fn": "none"}, "adjust_lr_fn='none' must be one of 'original'"),
        ({"split_rows": 7}, "split_rows=7 does not divide the 24 rows of 'param.0'"),
        ({"neuron_beta2": 1.5}, "neuron_beta2=1.5 must be"),
        ({"overrides": {"*": "sgd"}}, r"overrides\['\*'\]='sgd' must be one of 'muon', 'adamw'"),
    ],
)
def test_options_that_cannot_work_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Muon(parameters(), **options)


def test_groups_that_contradict_themselves_are_refused_and_change_nothing() -> None:
    (param, other) = parameters(((24, 40), (24, 40)))
    optimizer = Muon([param])
    for group, message in (
        ({"algorithm": "lion"}, "algorithm='lion' of a group must be one of"),
        ({"algorithm": "adamw", "use_muon": True}, "contradicts its use_muon=True"),
        ({"use_muon": 1}, "use_muon=1 of a group must be True or False"),
        ({"split_rows": 7}, "does not divide"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            optimizer.add_param_group({"params": [other], **group})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(ConfigurationError, match="adamw_params was given"):
        Muon([{"params": [param], "use_muon": False}], adamw_params=[other])


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (0, 40), (40, 0), (2, 0, 3)])
def test_thin_and_empty_matrices_may_be_stepped(shape: tuple[int, ...]) -> None:
    params = parameters((shape,))
    assert Muon(params).table.rows[0].algorithm == "adamw"
    before = params[0].detach().clone()
    optimizer = Muon([{"params": params, "use_muon": True}], lr=0.1, weight_decay=0.0)
    gradients(params, 0)
    optimizer.step()
    moved = (params[0].detach() - before).norm()
    scale = 0.2 * math.sqrt(max(shape)) * 0.1
    assert float(moved) == pytest.approx(scale if params[0].numel() else 0.0, rel=0.35)


def test_gradients_of_low_rank_move_other_directions_no_more_than_they_do_elsewhere() -> None:
    """Rounding the matrix to bfloat16 leaves a little in all directions, which is amplified."""
    found = []
    for build in (lambda p: Muon(p, lr=1.0, weight_decay=0.0, **EXACT), torch.optim.Muon):
        param = nn.Parameter(torch.zeros(24, 40))
        optimizer = build([param])
        optimizer.param_groups[0].update(lr=1.0, weight_decay=0.0)
        param.grad = torch.zeros(24, 40)
        optimizer.step()
        assert not param.detach().any()
        torch.manual_seed(2)
        param.grad = torch.randn(24, 2) @ torch.randn(2, 40)
        optimizer.step()
        found.append(param.detach())
    torch.testing.assert_close(*found, rtol=0, atol=2e-7)
    values = torch.linalg.svdvals(found[0])
    assert float(values[1]) > 0.6
    assert float(values[2]) < 0.5 * float(values[1])


@pytest.mark.parametrize("neuron_beta2", [None, 0.9])
def test_what_is_not_finite_is_left_out_of_its_matrix(neuron_beta2: float | None) -> None:
    (param,) = parameters(((24, 256),))
    before = param.detach().clone()
    optimizer = Muon([param], codec="luma16", neuron_beta2=neuron_beta2)
    gradients([param], 0)
    assert param.grad is not None
    param.grad[3, 5] = torch.nan
    optimizer.step()
    assert int(optimizer.state[param]["nonfinite"]) == 1
    same = param.detach() == before
    assert same[3, :128].all()
    assert not same[3, 128:].any()
    assert torch.isfinite(param).all()


def test_momentum_that_is_not_finite_is_skipped_as_long_as_it_lasts() -> None:
    (param,) = parameters(((24, 256),))
    optimizer = Muon([param], codec="fp32")
    gradients([param], 0)
    optimizer.step()
    optimizer.state[param]["momentum_buffer.value"][0, 0] = torch.inf
    before = param.detach().clone()
    for _ in range(2):
        optimizer.step()
    assert int(optimizer.state[param]["nonfinite"]) == 2
    assert torch.equal(param.detach()[0, :128], before[0, :128])
    assert torch.isfinite(param).all()
