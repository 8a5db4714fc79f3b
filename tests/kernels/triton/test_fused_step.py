"""The fused step equals the eager one, on every geometry, dtype and policy.

On a GPU the kernels run compiled; elsewhere in the interpreter, on small tensors.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from luma_core import LUMA
from tests.crossing import crossed

pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:.*FP_FUSION.*")

from luma_kernels.triton.fused.launcher import FusedStep  # noqa: E402
from luma_kernels.triton.runtime import plan, tables  # noqa: E402
from luma_kernels.triton.runtime.launch import KernelLaunch  # noqa: E402

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
SHAPES = [(16, 256), (12, 300), (3000,), (3, 5, 70), (1, 32), (40, 3)]


def test_host_and_kernels_agree_on_the_width_of_the_tables() -> None:
    assert tables.WIDTH.value == plan.WIDTH == tables.FIRST_INDEX.value + 1
    assert tables.ROW.value == plan.ROW == tables.LIMIT.value + 1


class Pair:
    """A parameter stepped by the eager backend, and its twin stepped by the kernels."""

    def __init__(
        self, shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32, **options: Any
    ) -> None:
        generator = torch.Generator().manual_seed(3)
        values = [torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes]
        self.eager = [nn.Parameter(value.clone()) for value in values]
        self.fused = [nn.Parameter(value.clone()) for value in values]
        options = {"lr": 0.01, "seed": 5, "min_compress_elements": 0, **options}
        self.eager_optimizer = LUMA(self.eager, backend="pytorch", **options)
        self.fused_optimizer = LUMA(self.fused, backend="pytorch", **options)
        self.fused_optimizer.init_state()
        self.generator = generator

    def step(self, **scaler: torch.Tensor) -> None:
        """One step of both from equal gradients; the twin's outputs are poisoned where possible."""
        for a, b in zip(self.eager, self.fused, strict=True):
            grad = torch.randn(a.shape, generator=self.generator) * 1e-2
            a.grad = grad.to(DEVICE, a.dtype)
            b.grad = a.grad.clone()
        self.eager_optimizer.step()
        self.fuse(**scaler)

    def fuse(self, **scaler: torch.Tensor) -> None:
        self.build().launch(self.fused_optimizer.param_groups, **scaler)

    def build(self) -> FusedStep:
        optimizer = self.fused_optimizer
        items = [
            (param, optimizer.state[param], optimizer.codecs(param, group), index)
            for index, group in enumerate(optimizer.param_groups)
            for param in group["params"]
        ]
        step = FusedStep(DEVICE, optimizer.rule)
        assert all(step.build(items, optimizer.param_groups))
        return step

    def assert_equal(self) -> None:
        """Codes at most 1 apart on at most 1 in 1000 elements; parameters to float rounding."""
        for a, b in zip(self.eager, self.fused, strict=True):
            left, right = self.eager_optimizer.state[a], self.fused_optimizer.state[b]
            for key in left:
                if key.endswith("codes"):
                    apart = (left[key].int() - right[key].int()) % 65536
                    assert bool(((apart <= 1) | (apart == 65535)).all()), key
                    assert int((apart != 0).sum()) <= max(1, apart.numel() // 1000), key
                elif key.endswith("value"):
                    torch.testing.assert_close(left[key], right[key], rtol=1e-5, atol=1e-9)
                else:
                    assert torch.equal(left[key], right[key]), key
            tolerance = 1e-5 if a.dtype == torch.float32 else 2**-7
            torch.testing.assert_close(a.detach(), b.detach(), rtol=tolerance, atol=1e-6)
            if a.dtype != torch.float32:
                assert float((a != b).double().mean()) < 2e-3


SIZES = [
    (torch.float32, 128),
    (torch.float32, 64),
    (torch.float32, None),
    (torch.bfloat16, 128),
    (torch.float16, 64),
    (torch.bfloat16, None),
    pytest.param(torch.bfloat16, 64, marks=pytest.mark.heavy),
    pytest.param(torch.float16, 128, marks=pytest.mark.heavy),
    pytest.param(torch.float16, None, marks=pytest.mark.heavy),
]


@pytest.mark.parametrize("block_size", [128, None])
def test_magnitudes_of_one_block_may_lie_far_apart(block_size: int | None) -> None:
    """Second moments far below the largest are not stored as 0."""
    pair = Pair([(2, 128)], block_size=block_size)
    grad = torch.logspace(-18, 15, 256).view(2, 128).to(DEVICE)
    grad[:, ::16] = 0.0
    for a, b in zip(pair.eager, pair.fused, strict=True):
        a.grad, b.grad = grad.clone(), grad.clone()
    pair.eager_optimizer.step()
    pair.fuse()
    pair.assert_equal()
    codes = pair.fused_optimizer.state[pair.fused[0]]["exp_avg_sq.codes"]
    assert torch.equal(codes == 0, grad == 0)


@pytest.mark.parametrize(("dtype", "block_size"), SIZES, ids=str)
def test_one_step_of_every_shape(dtype: torch.dtype, block_size: int | None) -> None:
    pair = Pair(SHAPES, dtype, block_size=block_size)
    pair.step()
    pair.assert_equal()


@pytest.mark.parametrize(
    "options",
    [
        {"maximize": True},
        {"weight_decay": 0.3, "betas": (0.5, 0.9), "eps": 1e-5},
        {"betas": (0.0, 0.0)},
        {"min_compress_elements": 10**6},
        {"stochastic_rounding": False},
    ],
    ids=str,
)
def test_options(options: dict[str, Any]) -> None:
    pair = Pair([(16, 128), (200,)], torch.bfloat16, **options)
    pair.step()
    pair.step()
    pair.assert_equal()


def test_groups_with_their_own_options_share_a_launch() -> None:
    pair = Pair([(4, 128)])
    for optimizer, params in (
        (pair.eager_optimizer, pair.eager),
        (pair.fused_optimizer, pair.fused),
    ):
        params.append(nn.Parameter(torch.ones(4, 128, device=DEVICE)))
        group = {"params": [params[-1]], "lr": 0.5, "weight_decay": 0.0, "eps": 1e-3}
        optimizer.add_param_group(group)
        optimizer.init_state()
    pair.step()
    pair.assert_equal()


@pytest.mark.parametrize("new_gradients", [False, True])
def test_repeated_launches_see_new_options_and_gradients(
    new_gradients: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    repeats = []

    def repeated(launch: KernelLaunch, *arguments: Any) -> Callable[[], Any]:
        return lambda: (repeats.append(launch), launch(*arguments))

    monkeypatch.setattr(KernelLaunch, "repeated", repeated)
    pair = Pair([(4, 128)])
    pair.step()
    step = pair.build()
    for lr in (0.01, 0.01, 0.5, 0.5):
        for optimizer in (pair.eager_optimizer, pair.fused_optimizer):
            optimizer.param_groups[0]["lr"] = lr
        grad = torch.randn(4, 128, generator=pair.generator).to(DEVICE) * 1e-2
        assert pair.eager[0].grad is not None
        assert pair.fused[0].grad is not None
        pair.eager[0].grad.copy_(grad)
        pair.eager_optimizer.step()
        if new_gradients:
            pair.fused[0].grad = grad
            assert step.follow_gradients()
        else:
            pair.fused[0].grad.copy_(grad)
        step.launch(pair.fused_optimizer.param_groups)
        pair.assert_equal()
    assert len(repeats) == (0 if new_gradients else 4)


@pytest.mark.parametrize(
    ("value", "block_size", "policy"),
    crossed([math.nan, math.inf, -math.inf], [128, None], ["skip", "propagate"]),
)
def test_nonfinite_gradients(policy: str, block_size: int | None, value: float) -> None:
    pair = Pair([(6, 300)], nonfinite=policy, block_size=block_size)
    pair.step()
    for param in (*pair.eager, *pair.fused):
        assert param.grad is not None
        param.grad[2, 140] = value
    pair.eager_optimizer.step()
    pair.fuse()
    if policy == "skip":
        pair.assert_equal()
        return
    assert torch.equal(pair.eager[0].isnan(), pair.fused[0].isnan())
    left, right = pair.eager_optimizer.state, pair.fused_optimizer.state
    for key in ("nonfinite", "exp_avg.exponent", "exp_avg_sq.exponent"):
        assert torch.equal(left[pair.eager[0]][key], right[pair.fused[0]][key]), key


def test_grad_scaler_tensors() -> None:
    """A set flag leaves everything as it was; else gradients are divided by the scale."""
    pair = Pair([(4, 256), (50,)], min_compress_elements=100)
    pair.step()
    pair.assert_equal()
    before = [p.detach().clone() for p in pair.fused]
    steps = [int(pair.fused_optimizer.state[p]["step"]) for p in pair.fused]
    scale, flag = torch.tensor(64.0, device=DEVICE), torch.tensor(1.0, device=DEVICE)
    for param in pair.fused:
        assert param.grad is not None
        param.grad.fill_(math.inf)
    pair.fuse(grad_scale=scale, found_inf=flag)
    assert all(torch.equal(p, q) for p, q in zip(pair.fused, before, strict=True))
    assert [int(pair.fused_optimizer.state[p]["step"]) for p in pair.fused] == steps
    for a, b in zip(pair.eager, pair.fused, strict=True):
        a.grad = torch.full_like(a, 0.25)
        b.grad = a.grad * 64
    pair.eager_optimizer.step()
    pair.fuse(grad_scale=scale, found_inf=torch.zeros_like(flag))
    pair.assert_equal()


def test_elements_beyond_the_tensors_stay_untouched() -> None:
    """Each tensor is a window of a larger one whose margins are poisoned."""
    pair = Pair([(1, 32)])
    margin, count = 64, 1500
    buffer = torch.full((count + 2 * margin,), 7.0, device=DEVICE)
    param = nn.Parameter(buffer[margin:-margin])
    param.grad = torch.ones_like(param)
    optimizer = LUMA([param], seed=1, min_compress_elements=0)
    optimizer.init_state()
    state = optimizer.state[param]
    for key in ("exp_avg.codes", "exp_avg_sq.codes"):
        wide = torch.full((count + 2 * margin,), 77, dtype=torch.int16, device=DEVICE)
        wide[margin:-margin] = 0
        state[key] = wide[margin:-margin]
    pair.fused, pair.fused_optimizer = [param], optimizer
    pair.fuse()
    assert bool((buffer[:margin] == 7).all())
    assert bool((buffer[-margin:] == 7).all())
    assert bool((param < 7).all())
    for key in ("exp_avg.codes", "exp_avg_sq.codes"):
        storage = state[key].untyped_storage()
        wide = torch.empty(0, dtype=torch.int16, device=DEVICE).set_(storage)  # type: ignore[call-overload]
        assert bool((wide[:margin] == 77).all())
        assert bool((wide[-margin:] == 77).all())


def test_unaligned_tensors() -> None:
    values = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    pair = Pair([(1, 32)])
    buffer = torch.zeros(1001, device=DEVICE)
    eager, fused = nn.Parameter(values[0].clone()), nn.Parameter(buffer[1:])
    fused.data.copy_(values[0])
    assert fused.data_ptr() % 16
    options = {"seed": 1, "min_compress_elements": 0, "backend": "pytorch"}
    pair.eager, pair.fused = [eager], [fused]
    pair.eager_optimizer, pair.fused_optimizer = LUMA([eager], **options), LUMA([fused], **options)
    pair.fused_optimizer.init_state()
    pair.step()
    pair.assert_equal()


def test_gradients_elsewhere_are_followed_without_new_tables() -> None:
    pair = Pair([(16, 128), (3, 300), (200,)])
    pair.step()
    step = pair.build()
    old = [param.grad for param in pair.fused]
    for a, b in zip(pair.eager, pair.fused, strict=True):
        a.grad = torch.full_like(a, 0.5)
        b.grad = a.grad.clone()
    assert all(
        grad is not None and param.grad is not None and grad.data_ptr() != param.grad.data_ptr()
        for grad, param in zip(old, pair.fused, strict=True)
    )
    assert step.follow_gradients()
    step.launch(pair.fused_optimizer.param_groups)
    pair.eager_optimizer.step()
    pair.assert_equal()


def test_an_unaligned_gradient_needs_new_tables() -> None:
    pair = Pair([(16, 128)])
    pair.step()
    step = pair.build()
    pair.fused[0].grad = torch.ones(16 * 128 + 1, device=DEVICE)[1:].view(16, 128)
    assert not step.follow_gradients()
    pair.eager[0].grad = pair.fused[0].grad.clone()
    pair.fuse()
    pair.eager_optimizer.step()
    pair.assert_equal()
