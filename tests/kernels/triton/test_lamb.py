"""The fused LAMB step equals the eager one, on every geometry, dtype, option and policy.

On a GPU the kernels run compiled; elsewhere in the interpreter, on small tensors.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from luma_core import LAMB
from tests.crossing import crossed

pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:.*FP_FUSION.*")

from luma_kernels.triton.fused.launcher import FusedStep  # noqa: E402

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
SHAPES = [(16, 256), (12, 300), (3000,), (3, 5, 70), (1, 32), (40, 3)]


class Pair:
    """Parameters stepped by the eager backend, and their twins stepped by the kernels."""

    def __init__(
        self, shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32, **options: Any
    ) -> None:
        self.generator = torch.Generator().manual_seed(3)
        values = [
            torch.randn(shape, generator=self.generator).to(DEVICE, dtype) for shape in shapes
        ]
        self.eager = [nn.Parameter(value.clone()) for value in values]
        self.fused = [nn.Parameter(value.clone()) for value in values]
        options = {"lr": 0.01, "seed": 5, "min_compress_elements": 0, **options}
        self.eager_optimizer = LAMB(self.eager, backend="pytorch", **options)
        self.fused_optimizer = LAMB(self.fused, backend="pytorch", **options)
        self.fused_optimizer.init_state()

    def grads(self, scale: float = 1e-2) -> None:
        for a, b in zip(self.eager, self.fused, strict=True):
            grad = torch.randn(a.shape, generator=self.generator) * scale
            a.grad = grad.to(DEVICE, a.dtype)
            b.grad = a.grad.clone()

    def step(self) -> None:
        self.grads()
        self.eager_optimizer.step()
        self.fuse()

    def fuse(self, **scaler: Tensor) -> None:
        """Step the twins, with the rule's buffers poisoned beforehand."""
        optimizer = self.fused_optimizer
        step = FusedStep(DEVICE, optimizer.rule)
        items = [
            (param, optimizer.state[param], optimizer.codecs(param, group), index)
            for index, group in enumerate(optimizer.param_groups)
            for param in group["params"]
        ]
        assert all(step.build(items, optimizer.param_groups))
        for part in step._plan.launches:  # type: ignore[union-attr]
            for buffer in part.scratch:
                buffer.fill_(math.nan if buffer.is_floating_point() else 77)
        bounded = any(group["max_grad_norm"] is not None for group in optimizer.param_groups)
        norm = step.square_sum().sqrt() if bounded else None
        step.launch(optimizer.param_groups, grad_norm=norm, **scaler)

    def assert_equal(self) -> None:
        """Codes at most 1 apart on at most 1 in 1000 elements; parameters to float rounding."""
        for a, b in zip(self.eager, self.fused, strict=True):
            left, right = self.eager_optimizer.state[a], self.fused_optimizer.state[b]
            for key in left:
                if key.endswith("codes"):
                    apart = (left[key].int() - right[key].int()) % 65536
                    assert bool(((apart <= 1) | (apart == 65535)).all()), key
                    assert int((apart != 0).sum()) <= max(2, apart.numel() // 1000), key
                elif key.endswith("value"):
                    torch.testing.assert_close(left[key], right[key], rtol=1e-5, atol=1e-9)
                else:
                    assert torch.equal(left[key], right[key]), key
            # One code apart in a moment is 1e-3 of an update.
            tolerance = 2e-5 if a.dtype == torch.float32 else 2**-7
            torch.testing.assert_close(a.detach(), b.detach(), rtol=tolerance, atol=2e-5)
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
        {"codec": "fp32"},
        {"codec": "fp32", "block_size": None},
        {"weight_decay": 0.0},
        {"weight_decay": 0.0, "always_adapt": True},
        {"trust_clip": True},
        {"bias_correction": False},
        {"max_grad_norm": 0.1},
        {"max_grad_norm": 0.1, "block_size": None},
        {"max_grad_norm": 1e3},
        {"stochastic_rounding": False},
    ],
    ids=str,
)
def test_options(options: dict[str, Any]) -> None:
    dtype = torch.float32 if "stochastic_rounding" not in options else torch.bfloat16
    pair = Pair([(16, 128), (200,), (2, 150)], dtype, **options)
    with torch.no_grad():
        for param in (pair.eager[0], pair.fused[0]):
            param.mul_(3)
    pair.step()
    pair.step()
    pair.assert_equal()


def test_groups_with_their_own_options_share_launches() -> None:
    pair = Pair([(4, 128)], max_grad_norm=0.05)
    for optimizer, params in (
        (pair.eager_optimizer, pair.eager),
        (pair.fused_optimizer, pair.fused),
    ):
        groups = (
            {"lr": 0.5, "weight_decay": 0.0, "eps": 1e-3, "max_grad_norm": None},
            {"trust_clip": True, "max_grad_norm": 0.01},
        )
        for group in groups:
            params.append(nn.Parameter(torch.full((4, 128), 3.0, device=DEVICE)))
            optimizer.add_param_group({"params": [params[-1]], **group})
        optimizer.init_state()
    pair.step()
    pair.assert_equal()


def test_parameters_and_updates_of_zeros() -> None:
    pair = Pair([(4, 128), (4, 128)])
    with torch.no_grad():
        for params in (pair.eager, pair.fused):
            params[0].zero_()
    pair.grads()
    for params in (pair.eager, pair.fused):
        params[1].grad.zero_()  # type: ignore[union-attr]
    pair.eager_optimizer.step()
    pair.fuse()
    pair.assert_equal()
    assert bool((pair.fused[0] != 0).any())


@pytest.mark.parametrize(
    ("value", "policy", "block_size"),
    [
        *crossed([math.nan, -math.inf], ["skip", "propagate"], [None, 128]),
        (1e30, "skip", None),
        (1e30, "skip", 128),
    ],
)
def test_nonfinite_gradients(policy: str, block_size: int | None, value: float) -> None:
    pair = Pair([(6, 300), (8, 128)], nonfinite=policy, block_size=block_size, max_grad_norm=0.1)
    pair.step()
    pair.grads()
    for param in (*pair.eager, *pair.fused):
        param.grad[2, 20] = value  # type: ignore[index]
    pair.eager_optimizer.step()
    pair.fuse()
    if policy == "skip":
        pair.assert_equal()
        return
    left, right = pair.eager_optimizer.state, pair.fused_optimizer.state
    for a, b in zip(pair.eager, pair.fused, strict=True):
        assert torch.equal(a.isnan(), b.isnan())
        torch.testing.assert_close(a.detach(), b.detach(), rtol=2e-5, atol=2e-5, equal_nan=True)
        for key in ("nonfinite", "exp_avg.exponent", "exp_avg_sq.exponent"):
            assert torch.equal(left[a][key], right[b][key]), key


def test_grad_scaler_tensors() -> None:
    """A set flag leaves everything as it was; else the scale acts before the bound."""
    pair = Pair([(4, 256), (50,)], min_compress_elements=100, max_grad_norm=0.5)
    pair.step()
    pair.assert_equal()
    before = [p.detach().clone() for p in pair.fused]
    steps = [int(pair.fused_optimizer.state[p]["step"]) for p in pair.fused]
    scale, flag = torch.tensor(64.0, device=DEVICE), torch.tensor(1.0, device=DEVICE)
    for param in pair.fused:
        param.grad.fill_(math.inf)  # type: ignore[union-attr]
    pair.fuse(grad_scale=scale, found_inf=flag)
    assert all(torch.equal(p, q) for p, q in zip(pair.fused, before, strict=True))
    assert [int(pair.fused_optimizer.state[p]["step"]) for p in pair.fused] == steps
    for a, b in zip(pair.eager, pair.fused, strict=True):
        a.grad = torch.full_like(a, 0.25)
        b.grad = a.grad * 64
    pair.eager_optimizer.step()
    pair.fuse(grad_scale=scale, found_inf=torch.zeros_like(flag))
    pair.assert_equal()


def test_the_norm_of_all_gradients() -> None:
    """Over several launches, without what is not finite, in a fixed order."""
    pair = Pair([(5, 300), (3000,), (7,)], min_compress_elements=100)
    pair.grads(scale=2.0)
    for param in pair.fused:
        param.grad.view(-1)[3] = math.inf  # type: ignore[union-attr]
    expected = sum(
        float(torch.where(p.grad.isfinite(), p.grad, 0.0).double().square().sum())  # type: ignore[union-attr,arg-type]
        for p in pair.fused
    )
    found = []
    for _ in range(2):
        step = FusedStep(DEVICE, pair.fused_optimizer.rule)
        state, groups = pair.fused_optimizer.state, pair.fused_optimizer.param_groups
        codecs = [pair.fused_optimizer.codecs(p, groups[0]) for p in pair.fused]
        step.build([(p, state[p], c, 0) for p, c in zip(pair.fused, codecs, strict=True)], groups)
        found.append(step.square_sum())
    assert torch.equal(*found)
    assert float(found[0]) == pytest.approx(expected, rel=1e-6)


def test_elements_beyond_the_tensors_stay_untouched() -> None:
    """Each tensor is a window of a larger one whose margins are poisoned."""
    margin, count = 64, 1500
    pair = Pair([(1, 32)])
    buffer = torch.full((count + 2 * margin,), 7.0, device=DEVICE)
    param = nn.Parameter(buffer[margin:-margin])
    param.grad = torch.ones_like(param)
    optimizer = LAMB([param], lr=0.1, seed=1, min_compress_elements=0)
    optimizer.init_state()
    state = optimizer.state[param]
    wide = {}
    for key in ("exp_avg.codes", "exp_avg_sq.codes"):
        wide[key] = torch.full((count + 2 * margin,), 77, dtype=torch.int16, device=DEVICE)
        wide[key][margin:-margin] = 0
        state[key] = wide[key][margin:-margin]
    pair.fused, pair.fused_optimizer = [param], optimizer
    pair.fuse()
    assert bool((param < 7).all())
    for tensor, poison in ((buffer, 7), *((t, 77) for t in wide.values())):
        assert bool((tensor[:margin] == poison).all())
        assert bool((tensor[-margin:] == poison).all())


def test_unaligned_tensors() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    pair = Pair([(1, 32)])
    fused = nn.Parameter(torch.zeros(1001, device=DEVICE)[1:])
    fused.data.copy_(values)
    assert fused.data_ptr() % 16
    options: dict[str, Any] = {"seed": 1, "min_compress_elements": 0, "backend": "pytorch"}
    pair.eager, pair.fused = [nn.Parameter(values.clone())], [fused]
    pair.eager_optimizer, pair.fused_optimizer = (
        LAMB(pair.eager, **options),
        LAMB([fused], **options),
    )
    pair.fused_optimizer.init_state()
    pair.step()
    pair.assert_equal()
