"""A LAMB step equals LAMB in float64, takes its norms from what is stored, bounds gradients."""

import copy
import math
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from luma_core import LAMB
from luma_core.backends import native, registry
from luma_core.codecs import BlockGrid, Luma16M, Luma16V
from luma_core.errors import BackendUnavailableError, ConfigurationError, UnknownCodecError
from luma_core.rules import LAMBRule

Make = Callable[..., nn.Module]
Train = Callable[..., float]

SHAPES = [(70, 288), (33, 70), (300,), (8, 3, 3, 3), (), (5, 200)]


class Reference:
    """LAMB in float64, written from its formula."""

    def __init__(self, params: list[Tensor], **options: Any) -> None:
        self.params = [p.detach().double().clone() for p in params]
        self.m = [torch.zeros_like(p) for p in self.params]
        self.v = [torch.zeros_like(p) for p in self.params]
        self.options = {
            "lr": 1e-3,
            "betas": (0.9, 0.999),
            "eps": 1e-6,
            "weight_decay": 0.01,
            "max_grad_norm": None,
            "trust_clip": False,
            "always_adapt": False,
            "bias_correction": True,
            "maximize": False,
            **options,
        }
        self.t = 0
        self.ratios: list[float] = []

    def step(self, grads: list[Tensor]) -> None:
        o = self.options
        self.t += 1
        b1, b2 = o["betas"]
        c1, c2 = (1 - b1**self.t, 1 - b2**self.t) if o["bias_correction"] else (1, 1)
        sign = -1 if o["maximize"] else 1
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in grads))
        clip = min(1.0, o["max_grad_norm"] / norm) if o["max_grad_norm"] else 1.0
        self.ratios = []
        for p, m, v, grad in zip(self.params, self.m, self.v, grads, strict=True):
            g = grad.double() * sign * clip
            m.mul_(b1).add_((1 - b1) * g)
            v.mul_(b2).add_((1 - b2) * g * g)
            u = (m / c1) / ((v / c2).sqrt() + o["eps"]) + o["weight_decay"] * p
            norms = float(p.norm()), float(u.norm())
            ratio = norms[0] / norms[1] if norms[0] and norms[1] else 1.0
            if o["trust_clip"]:
                ratio = min(ratio, 1.0)
            if not (o["weight_decay"] or o["always_adapt"]):
                ratio = 1.0
            self.ratios.append(ratio)
            p.sub_(float(o["lr"]) * ratio * u)


def some_params(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """Of every geometry and several norms, and one of zeros."""
    torch.manual_seed(0)
    scales = (1.0, 0.2, 3.0, 0.5, 1.0, 0.0)
    pairs = zip(SHAPES, scales, strict=True)
    return [nn.Parameter((torch.randn(shape) * scale).to(dtype)) for shape, scale in pairs]


def some_grads(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=generator) * 0.01 for shape in SHAPES]


def stepped(optimizer: LAMB, params: list[nn.Parameter], step: int) -> None:
    for param, grad in zip(params, some_grads(step), strict=True):
        param.grad = grad.to(param.dtype)
    optimizer.step()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.0},
        {"weight_decay": 0.0, "always_adapt": True},
        {"trust_clip": True},
        {"bias_correction": False},
        {"maximize": True},
        {"max_grad_norm": 0.05},
        {"max_grad_norm": 1e6},
        {"betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.3},
        {"lr": torch.tensor(0.002)},
    ],
    ids=str,
)
def test_the_rule_is_lamb(options: dict[str, Any]) -> None:
    params = some_params()
    options = {"lr": 0.01, **options}
    reference = Reference(params, **options)  # type: ignore[arg-type]
    optimizer = LAMB(params, codec="fp32", seed=1, **options)
    for step in range(20):
        stepped(optimizer, params, step)
        reference.step(some_grads(step))
    for param, expected in zip(params, reference.params, strict=True):
        torch.testing.assert_close(param.detach().double(), expected, rtol=2e-6, atol=2e-6)


def test_the_options_of_the_test_above_bind() -> None:
    """Ratios lie on both sides of 1, and the small bound is below the gradients' norm."""
    reference = Reference(some_params())  # type: ignore[arg-type]
    reference.step(some_grads(0))
    assert min(reference.ratios) < 0.9
    assert max(reference.ratios) > 1.1
    assert math.sqrt(sum(float(g.square().sum()) for g in some_grads(0))) > 0.5


def test_groups_without_weight_decay_step_like_adamw() -> None:
    ours, theirs = some_params(), some_params()
    mine = LAMB(ours, lr=0.01, eps=1e-8, weight_decay=0.0, codec="fp32", seed=1)
    reference = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.0)
    for step in range(5):
        stepped(mine, ours, step)
        for param, grad in zip(theirs, some_grads(step), strict=True):
            param.grad = grad
        reference.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block_size", [128, 48, None])
@pytest.mark.parametrize("codec", ["luma16", "bf16"])
def test_update_and_ratio_are_those_of_the_stored_moments(
    codec: str, block_size: int | None
) -> None:
    """Computed in float64 from the state after the step, to float32's rounding."""
    param = nn.Parameter(torch.randn(9, 300, generator=torch.Generator().manual_seed(0)))
    optimizer = LAMB([("p", param)], lr=0.1, codec=codec, block_size=block_size, seed=1)
    for step in range(1, 4):
        old = param.detach().double().clone()
        param.grad = torch.randn(9, 300, generator=torch.Generator().manual_seed(step))
        optimizer.step()
        state = optimizer.parameter_state("p")
        m, v = (state.decode(moment).double() for moment in ("exp_avg", "exp_avg_sq"))
        u = m / (1 - 0.9**step) / ((v / (1 - 0.999**step)).sqrt() + 1e-6) + 0.01 * old
        expected = old - 0.1 * (old.norm() / u.norm()) * u
        torch.testing.assert_close(param.detach().double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block_size", [128, None])
def test_training_with_compressed_state_follows_float32_state(
    make_model: Make, train: Train, dtype: torch.dtype, block_size: int | None
) -> None:
    ours, theirs = make_model(dtype=dtype), make_model()
    coded = LAMB(ours.parameters(), 1e-2, block_size=block_size, seed=1)
    plain = LAMB(theirs.parameters(), 1e-2, codec="fp32", seed=1)
    start = train(make_model(), LAMB([nn.Parameter(torch.ones(()))], seed=0), 1)
    mine, reference = train(ours, coded, 40), train(theirs, plain, 40)
    assert mine == pytest.approx(reference, rel=0.005 if dtype == torch.float32 else 0.03)
    assert reference < 0.9 * start


@pytest.mark.parametrize("elements", [300, 1000, 1 << 20])
def test_results_do_not_depend_on_the_size_of_tiles(
    monkeypatch: pytest.MonkeyPatch, elements: int
) -> None:
    runs = []
    for size in (None, elements):
        if size is not None:
            monkeypatch.setattr(BlockGrid, "tiles", tiles_of(size))
        params = some_params(torch.bfloat16)
        optimizer = LAMB(params, lr=0.1, max_grad_norm=0.1, seed=1)
        for step in range(5):
            stepped(optimizer, params, step)
        runs.append(params)
    assert all(torch.equal(p, q) for p, q in zip(*runs, strict=True))


def tiles_of(size: int) -> Callable[..., Iterator[Any]]:
    tiles = BlockGrid.tiles
    return lambda grid, max_elements=None: tiles(grid, size)


def test_the_bound_is_on_all_groups_together_and_scales_groups_that_have_one() -> None:
    params = [nn.Parameter(torch.ones(4, 64)) for _ in range(3)]
    optimizer = LAMB(
        [
            {"params": [("a", params[0])], "max_grad_norm": 0.5},
            {"params": [("b", params[1])], "max_grad_norm": 5.0},
            {"params": [("c", params[2])]},
        ],
        codec="fp32",
        betas=(0.0, 0.0),
        seed=1,
    )
    for param, size in zip(params, (1.0, 2.0, 2.0), strict=True):
        param.grad = torch.full_like(param, size / 16)
    before = [param.grad.clone() for param in params if param.grad is not None]
    optimizer.step()  # the norm of all gradients is 3
    found = [float(optimizer.state[param]["exp_avg.value"][0, 0]) for param in params]
    assert found == pytest.approx([1 / 16 * 0.5 / 3, 2 / 16, 2 / 16], rel=1e-6)
    for param, grad in zip(params, before, strict=True):
        assert torch.equal(param.grad, grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(), (0,), (0, 40), (3, 0), (1,), (129,), (33, 1)], ids=str)
@pytest.mark.parametrize("block_size", [128, None])
def test_odd_shapes_step(shape: tuple[int, ...], block_size: int | None) -> None:
    param = nn.Parameter(torch.ones(shape))
    optimizer = LAMB(
        [param], block_size=block_size, min_compress_elements=0, max_grad_norm=1.0, seed=0
    )
    reference = Reference([param], max_grad_norm=1.0)
    for _ in range(3):
        param.grad = torch.full(shape, 0.5)
        optimizer.step()
        if param.numel():
            reference.step([param.grad])
    torch.testing.assert_close(param.detach(), reference.params[0].float(), rtol=1e-5, atol=1e-6)


def test_grad_scaler_skips_overflowed_steps(make_model: Make) -> None:
    model = make_model()
    optimizer = LAMB(model.parameters(), max_grad_norm=1.0, seed=0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    for poison in (False, True, False):
        before = copy.deepcopy(model)
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(4, 3, 8, 8)).square().mean()).backward()
        if poison:
            model.out.weight.grad[0, 0] = torch.inf  # type: ignore[index,union-attr]
        scaler.step(optimizer)
        scaler.update()
        pairs = zip(before.parameters(), model.parameters(), strict=True)
        assert all(torch.equal(p, q) for p, q in pairs) is poison


def test_a_step_of_a_large_tensor_needs_at_most_40_mib() -> None:
    """Peak resident memory over a step of 16 Mi elements (64 MiB in float32)."""
    param = nn.Parameter(torch.full((2048, 8192), 0.5))
    param.grad = torch.full_like(param, 0.5)
    optimizer = LAMB([param], max_grad_norm=1.0, seed=0)
    optimizer.step()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    optimizer.step()
    assert resident("VmHWM") - before < 40 * 2**20


def resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


@pytest.mark.parametrize(
    ("codec", "names", "most_bytes"),
    [("luma16", "luma16_m luma16_v", 4.1), ("bf16", "bf16 bf16", 4.1), ("fp32", "fp32 fp32", 8.1)],
)
def test_codecs_by_name_and_their_sizes(codec: str, names: str, most_bytes: float) -> None:
    param = nn.Parameter(torch.ones(512, 768))
    optimizer = LAMB([param], codec=codec, seed=0)
    optimizer.init_state()
    group = optimizer.param_groups[0]
    assert " ".join(config["name"] for config in group["codecs"].values()) == names
    assert "codec" not in group
    tensors = optimizer.state[param].values()
    assert sum(t.numel() * t.element_size() for t in tensors) / param.numel() <= most_bytes


def test_codecs_by_configuration_and_by_group() -> None:
    pair = {
        "exp_avg": Luma16M(block_size=64, octaves=13).to_dict(),
        "exp_avg_sq": Luma16V(block_size=64).to_dict(),
    }
    params = [nn.Parameter(torch.ones(4, 256)) for _ in range(3)]
    groups = [
        {"params": [params[0]], "codec": pair},
        {"params": [params[1]], "codec": "fp32"},
        {"params": [params[2]], "block_size": 32},
    ]
    optimizer = LAMB(groups, seed=0)
    assert optimizer.param_groups[0]["codecs"] == pair
    assert optimizer.param_groups[1]["codecs"]["exp_avg"]["name"] == "fp32"
    assert optimizer.param_groups[2]["codecs"]["exp_avg"]["block_size"] == 32
    twin = pickle.loads(pickle.dumps(optimizer))  # noqa: S301
    twin.add_param_group({"params": [nn.Parameter(torch.ones(2, 64))]})
    assert twin.param_groups[-1]["codecs"]["exp_avg"]["name"] == "luma16_m"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"codec": "int3"}, UnknownCodecError, "codec='int3' must be one of 'luma16', 'fp32'"),
        ({"codec": 16}, UnknownCodecError, "codec=16 must be"),
        (
            {"codec": {"exp_avg": {}}},
            ConfigurationError,
            "must map each of 'exp_avg', 'exp_avg_sq'",
        ),
        (
            {"block_size": 0},
            ConfigurationError,
            "block_size=0 must be a positive integer",
        ),
        ({"max_grad_norm": 0.0}, ConfigurationError, "max_grad_norm=0.0 must be a finite number"),
        ({"max_grad_norm": True}, ConfigurationError, "max_grad_norm=True must be"),
        ({"max_grad_norm": math.inf}, ConfigurationError, "max_grad_norm=inf must be"),
        ({"trust_clip": 1}, ConfigurationError, "trust_clip=1 must be True or False"),
        ({"always_adapt": None}, ConfigurationError, "always_adapt=None must be True or False"),
        ({"bias_correction": 0}, ConfigurationError, "bias_correction=0 must be True or False"),
    ],
    ids=str,
)
def test_wrong_options(
    options: dict[str, Any], error: type[ConfigurationError], message: str
) -> None:
    with pytest.raises(error) as caught:
        LAMB([nn.Parameter(torch.ones(4, 64))], **options)
    assert message in str(caught.value)


def test_the_native_backend_has_no_kernel_of_one_scale_and_says_so() -> None:
    choose = partial(registry.choose, "cpu", LAMBRule())
    if native.native_cpu() is None:
        pytest.skip("there is no native library to ask for by name")
    codecs = {"exp_avg": Luma16M(block_size=None), "exp_avg_sq": Luma16V(block_size=None)}
    assert choose(codecs).backend == "pytorch"
    assert choose(codecs).reason == "there is no native kernel of LAMBRule and block_size=None"
    param = nn.Parameter(torch.ones(4, 64))
    param.grad = torch.ones_like(param)
    optimizer = LAMB([("weight", param)], backend="native", block_size=None)
    with pytest.raises(BackendUnavailableError, match=r"cannot step 'weight'.*LAMBRule"):
        optimizer.step()
