"""Adam, RAdam, NAdamW and QHAdamW: against PyTorch's and twins, saved, loaded into each other."""

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from luma_core import LUMA, Adam, AdamW, NAdamW, QHAdamW, RAdam, checkpoint, convert
from luma_core.errors import ConfigurationError, ConversionError, StateMismatchError
from luma_core.optim import CompressedOptimizer
from luma_core.optim.adamw_state import AdamWStateOptimizer
from luma_core.rules.nadamw import momentum_product

Build = Callable[..., AdamWStateOptimizer]
Params = dict[str, nn.Parameter]
SHAPES = ((40, 130), (7,))
SCHEDULED = partial(NAdamW, momentum_decay=4e-3)
MIXED = partial(QHAdamW, nus=(0.7, 0.9))
COUPLED = partial(Adam, weight_decay=0.1)
FAMILY: Mapping[str, Build] = {
    "adam": COUPLED,
    "radam": RAdam,
    "nadamw": NAdamW,
    "nadamw-scheduled": SCHEDULED,
    "qhadamw": MIXED,
}
every_one = pytest.mark.parametrize("build", FAMILY.values(), ids=FAMILY.keys())


def parameters(dtype: torch.dtype = torch.float32) -> Params:
    generator = torch.Generator().manual_seed(0)
    return {
        f"p{i}": nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        for i, shape in enumerate(SHAPES)
    }


def steps(params: Params, optimizer: torch.optim.Optimizer, count: int, first: int = 0) -> None:
    for step in range(first, first + count):
        for name, param in params.items():
            generator = torch.Generator().manual_seed(100 * step + len(name) + param.dim())
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        optimizer.step()


def values(params: Params) -> Tensor:
    return torch.cat([param.detach().flatten() for param in params.values()])


# Against PyTorch's

DECOUPLED = {"weight_decay": 0.1, "decoupled_weight_decay": True}
TWINS: dict[str, tuple[Build, Any]] = {
    "adam": (Adam, partial(torch.optim.Adam)),
    "adam-coupled": (COUPLED, partial(torch.optim.Adam, weight_decay=0.1)),
    "adam-decoupled": (partial(Adam, **DECOUPLED), partial(torch.optim.Adam, **DECOUPLED)),
    "radam-coupled": (
        partial(RAdam, weight_decay=0.1),
        partial(torch.optim.RAdam, weight_decay=0.1),
    ),
    "radam-decoupled": (partial(RAdam, **DECOUPLED), partial(torch.optim.RAdam, **DECOUPLED)),
    "radam-never-rectified": (
        partial(RAdam, betas=(0.9, 0.5)),
        partial(torch.optim.RAdam, betas=(0.9, 0.5)),
    ),
    "nadamw-scheduled": (
        partial(SCHEDULED, lr=2e-3, weight_decay=0.1),
        partial(torch.optim.NAdam, lr=2e-3, **DECOUPLED),
    ),
    "qhadamw-plain": (QHAdamW, torch.optim.AdamW),
}


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(("build", "reference"), TWINS.values(), ids=TWINS.keys())
def test_with_float32_state_it_is_pytorchs(build: Build, reference: Any, maximize: bool) -> None:
    ours, theirs = parameters(), parameters()
    steps(ours, build(ours.items(), codec="fp32", maximize=maximize), 20)
    steps(theirs, reference(theirs.values(), maximize=maximize, foreach=False), 20)
    # Operations in another order: an ulp of the parameter, or of its update, in each step.
    bound = 20 * 2.0**-24 * (values(theirs).abs() + 0.02)
    assert bool(((values(ours) - values(theirs)).abs() <= bound).all())


# Against twins


def nesterov(p: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int) -> None:
    """Choi et al. (2019): the mean of gradients is taken once more."""
    p.mul_(1 - 1e-3 * 0.01)
    m.lerp_(g, 1.0 - 0.9)
    v.mul_(0.999).addcmul_(g, g, value=1.0 - 0.999)
    update = (m * 0.9).add_(g * (1.0 - 0.9))
    update /= v.sqrt().mul_(1.0 / math.sqrt(1 - 0.999**t)).add_(1e-8)
    p.sub_(update * (1e-3 * (1.0 / (1 - 0.9**t))))


def quasi_hyperbolic(p: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int) -> None:
    """Ma and Yarats (2019), moments stored with their bias corrected."""
    p.mul_(1 - 1e-3 * 0.01)
    first, second = ((1 - beta) / (1 - beta**t) for beta in (0.9, 0.999))
    m.mul_(1 - first).add_(g, alpha=first)
    v.mul_(1 - second).addcmul_(g, g, value=second)
    root = (0.9 * v + 0.1 * g * g).sqrt() + 1e-8
    p.sub_(1e-3 * (0.3 * g + 0.7 * m) / root)


@pytest.mark.parametrize(
    ("build", "twin", "exact"),
    [(NAdamW, nesterov, True), (MIXED, quasi_hyperbolic, False)],
    ids=["nadamw", "qhadamw"],
)
def test_with_float32_state_it_is_its_twin(build: Build, twin: Any, exact: bool) -> None:
    ours, theirs = parameters(), parameters()
    optimizer = build(ours.items(), codec="fp32", backend="pytorch")
    with torch.no_grad():
        kept = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in theirs.items()}
        for step in range(20):
            steps(ours, optimizer, 1, step)
            for name, p in theirs.items():
                grad = ours[name].grad
                assert grad is not None
                twin(p, grad, *kept[name], step + 1)
    if exact:
        assert torch.equal(values(ours), values(theirs))
    bound = 20 * 2.0**-24 * (values(theirs).abs() + 0.02)
    assert bool(((values(ours) - values(theirs)).abs() <= bound).all())


def test_the_product_of_momenta_is_pytorchs() -> None:
    params = parameters()
    optimizer = torch.optim.NAdam(params.values())
    for step in (1, 2, 20):
        steps(params, optimizer, step - len(range(step - 1)))
    found = optimizer.state[params["p0"]]
    expected = momentum_product(0.9, 4e-3, int(found["step"]))
    assert float(found["mu_product"]) == pytest.approx(expected, rel=1e-5)
    assert momentum_product(0.9, 4e-3, 10**12) == 0.0


# Saved state


@pytest.mark.parametrize("codec", ["luma16", "8bit", "fp32"])
@every_one
def test_a_saved_run_goes_on_with_the_same_bits(tmp_path: Path, build: Build, codec: str) -> None:
    params = parameters()
    optimizer = build(params.items(), codec=codec, min_compress_elements=0)
    steps(params, optimizer, 3)
    others = [copy.deepcopy(params), copy.deepcopy(params)]
    by_dict, by_file = (build(other.items(), codec=codec) for other in others)
    by_dict.load_state_dict(optimizer.state_dict())
    checkpoint.save(tmp_path / "state", optimizer=optimizer)
    assert checkpoint.open(tmp_path / "state").manifest.algorithm == optimizer.algorithm
    checkpoint.load(tmp_path / "state", optimizer=by_file)
    for found, one in ((params, optimizer), (others[0], by_dict), (others[1], by_file)):
        steps(found, one, 5, 3)
    for other in others:
        assert torch.equal(values(params), values(other))


@every_one
def test_state_of_before_the_first_step_loads_and_counts_nothing(build: Build) -> None:
    params, others = parameters(), parameters()
    optimizer, other = build(params.items()), build(others.items())
    other.load_state_dict(optimizer.state_dict())
    optimizer.init_state()
    other.load_state_dict(optimizer.state_dict())
    assert {state.step for state in other.parameter_states()} == {0}
    steps(params, optimizer, 2)
    steps(others, other, 2)
    assert torch.equal(values(params), values(others))


def test_state_says_its_algorithm() -> None:
    for build in (*FAMILY.values(), LUMA, AdamW):
        optimizer = build(parameters().items())
        (group,) = optimizer.state_dict()["param_groups"]
        assert group["algorithm"] == optimizer.algorithm
        assert "algorithm" not in optimizer.param_groups[0]
        optimizer.load_state_dict(optimizer.state_dict())
        assert "algorithm" not in optimizer.param_groups[0]


@pytest.mark.parametrize("said", ["adamax", 3])
def test_an_algorithm_that_there_is_not_is_refused(said: object) -> None:
    optimizer = RAdam(parameters().items())
    state = optimizer.state_dict()
    state["param_groups"][0]["algorithm"] = said
    with pytest.raises(StateMismatchError, match=f"algorithm={said!r}; all must say one of"):
        optimizer.load_state_dict(state)


@every_one
def test_state_without_a_name_is_taken_for_adamws(
    build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    params, others = parameters(), parameters()
    optimizer = AdamW(params.items())
    steps(params, optimizer, 2)
    state = optimizer.state_dict()
    del state["param_groups"][0]["algorithm"]
    other = build(others.items())
    other.load_state_dict(state)
    assert len(caplog.records) == 1
    assert {one.step for one in other.parameter_states()} == {2}


# Of one into another

CONVERTIBLE = [RAdam, NAdamW, SCHEDULED, MIXED, AdamW, LUMA, Adam]


@pytest.mark.parametrize("there", CONVERTIBLE[:4])
@pytest.mark.parametrize("here", CONVERTIBLE)
def test_moments_go_over_as_they_are(
    there: Any, here: Any, caplog: pytest.LogCaptureFixture
) -> None:
    params = parameters()
    source = there(params.items(), lr=0.5, weight_decay=0.0, min_compress_elements=0)
    optimizer = here(parameters().items(), min_compress_elements=0)
    steps(params, source, 2)
    before = optimizer.group_options()
    optimizer.load_state_dict(source.state_dict())
    same = source.algorithm == optimizer.algorithm
    assert len(caplog.records) == (0 if same else 1)
    assert optimizer.param_groups[0]["lr"] == 0.5
    for key in ("nus", "momentum_decay"):
        if key in before[0] and not same:
            assert optimizer.group_options()[0][key] == before[0][key]
    for ours, theirs in zip(optimizer.parameter_states(), source.parameter_states(), strict=True):
        assert ours.step == theirs.step == 2
        for key, field in theirs.fields.items():
            assert torch.equal(ours.fields[key], field)


@pytest.mark.parametrize("here", [AdamW, LUMA, NAdamW, MIXED])
def test_decay_in_the_gradient_cannot_become_decoupled(here: Any, tmp_path: Path) -> None:
    params = parameters()
    source = COUPLED(params.items())
    steps(params, source, 1)
    checkpoint.save(tmp_path / "state", optimizer=source)
    optimizer = here(parameters().items())
    torchs = torch.optim.Adam(parameters().values(), weight_decay=0.1).state_dict()
    with pytest.raises(StateMismatchError, match=r"weight_decay=0\.1 added to the gradient"):
        optimizer.load_state_dict(source.state_dict())
    with pytest.raises(StateMismatchError, match=r"weight_decay=0\.1 added to the gradient"):
        checkpoint.load(tmp_path / "state", optimizer=optimizer)
    with pytest.raises(ConversionError, match=r"weight_decay=0\.1 added to the gradient"):
        optimizer.load_state_dict(torchs)


@pytest.mark.parametrize("here", [Adam, RAdam])
def test_how_weight_decay_is_meant_goes_over(here: Any) -> None:
    for there, decoupled in ((AdamW, True), (COUPLED, False), (RAdam, False)):
        optimizer = here(parameters().items())
        optimizer.load_state_dict(there(parameters().items()).state_dict())
        assert optimizer.param_groups[0]["decoupled_weight_decay"] is decoupled


# PyTorch's own state

TORCHS: dict[str, tuple[Build, Any]] = {
    "adam": (Adam, partial(torch.optim.Adam, weight_decay=0.1)),
    "radam": (RAdam, partial(torch.optim.RAdam, weight_decay=0.1)),
    "nadam": (NAdamW, partial(torch.optim.NAdam, lr=2e-3, **DECOUPLED)),
    "adamw": (Adam, torch.optim.AdamW),
}


@pytest.mark.parametrize(("build", "torchs"), TORCHS.values(), ids=TORCHS.keys())
def test_a_run_of_pytorchs_goes_on_here_and_back(build: Build, torchs: Any) -> None:
    ours, theirs = parameters(), parameters()
    there = torchs(theirs.values())
    steps(theirs, there, 6)
    here = build(ours.items(), codec="fp32")
    with torch.no_grad():
        for name, param in ours.items():
            param.copy_(theirs[name])
    here.load_state_dict(there.state_dict())
    steps(theirs, there, 6, 6)
    steps(ours, here, 6, 6)
    torch.testing.assert_close(values(ours), values(theirs), rtol=1e-6, atol=1e-7)
    back = torchs(theirs.values(), lr=0.5)
    back.load_state_dict(here.export_adamw_state())
    assert back.param_groups[0]["lr"] == there.param_groups[0]["lr"]
    for name, param in theirs.items():
        found = back.state[param]
        assert found.keys() == there.state[param].keys()
        for key, value in found.items():
            torch.testing.assert_close(value, there.state[param][key], rtol=1e-4, atol=1e-8), name


def test_nadams_product_after_other_momenta_is_refused() -> None:
    params = parameters()
    there = torch.optim.NAdam(params.values())
    steps(params, there, 2)
    for state in there.state.values():
        state["mu_product"].mul_(1.5)
    with pytest.raises(ConversionError, match=r"mu_product is 0\.3"):
        NAdamW(parameters().items()).load_state_dict(there.state_dict())


@pytest.mark.parametrize("codec", ["luma16", "turbo-8bit"])
@every_one
def test_conversion_to_other_codecs_keeps_the_algorithm(
    tmp_path: Path, build: Build, codec: str
) -> None:
    params, others = parameters(), parameters()
    optimizer, other = build(params.items(), codec="fp32"), build(others.items(), lr=0.5)
    steps(params, optimizer, 2)
    checkpoint.save(tmp_path / "exact", optimizer=optimizer)
    convert.convert(tmp_path / "exact", tmp_path / "coded", to="luma", codec=codec)
    assert checkpoint.open(tmp_path / "coded").manifest.algorithm == optimizer.algorithm
    checkpoint.load(tmp_path / "coded", optimizer=other)
    for key in ("lr", "nus", "momentum_decay", "decoupled_weight_decay"):
        assert other.group_options()[0].get(key) == optimizer.group_options()[0].get(key)
    steps(others, other, 1)


def test_nadams_file_is_what_pytorch_loads(tmp_path: Path) -> None:
    params = parameters()
    optimizer = SCHEDULED(params.items())
    steps(params, optimizer, 3)
    checkpoint.save(tmp_path / "saved", optimizer=optimizer)
    convert.convert(tmp_path / "saved", tmp_path / "nadam.pt", to="adamw")
    there = torch.optim.NAdam(params.values(), lr=0.5)
    there.load_state_dict(torch.load(tmp_path / "nadam.pt", weights_only=True))
    product = momentum_product(0.9, 4e-3, 3)
    assert float(there.state[params["p0"]]["mu_product"]) == pytest.approx(product)
    assert there.param_groups[0]["momentum_decay"] == 4e-3
    assert there.param_groups[0]["decoupled_weight_decay"] is True
    steps(params, there, 1, 3)


# Options


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (NAdamW, {"momentum_decay": -1.0}, "momentum_decay=-1.0 must be a finite number of 0"),
        (QHAdamW, {"nus": (0.5,)}, r"nus=\(0.5,\) must be two numbers from 0 to 1"),
        (QHAdamW, {"nus": (0.5, 1.5)}, "must be two numbers from 0 to 1"),
        (Adam, {"decoupled_weight_decay": None}, "decoupled_weight_decay=None must be True or"),
        (Adam, {"amsgrad": True}, "amsgrad=True must be False"),
    ],
)
def test_options_that_cannot_work_are_refused(
    build: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build(parameters().items(), **options)


def test_a_group_has_its_own_options() -> None:
    params = parameters()
    groups = [
        {"params": [params["p0"]], "decoupled_weight_decay": True, "weight_decay": 0.1},
        {"params": [params["p1"]]},
    ]
    optimizer: CompressedOptimizer = Adam(groups)
    assert [group["decoupled_weight_decay"] for group in optimizer.param_groups] == [True, False]
    steps(params, optimizer, 2)


@pytest.mark.parametrize("codec", ["5bit", "8bit"])
@every_one
def test_a_spike_after_silence_moves_no_further_than_its_bound(build: Build, codec: str) -> None:
    param = nn.Parameter(torch.zeros(4, 4096))
    optimizer = build([("w", param)], lr=1.0, weight_decay=0.0, codec=codec)
    for step in range(12):
        param.grad = torch.full_like(param, 1e-6)
        param.grad[:, ::97] = 1.0 if step == 11 else 1e-6
        before = param.detach().clone()
        optimizer.step()
    # Twice the largest update that exact moments could make, of gradient and moment together.
    assert float((param.detach() - before).abs().max()) < 30.0
