"""What leaves an optimizer can be gathered and broadcast: no dtype that collectives do not know."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from luma_core import LAMB, LUMA, AdamMini, TurboAdam
from luma_core.carried import as_bytes, from_bytes
from luma_core.errors import StateMismatchError

KINDS = {
    "luma": lambda p: LUMA(p, seed=1),
    "luma_whole": lambda p: LUMA(p, seed=1, block_size=None),
    "turbo": lambda p: TurboAdam(p, seed=1, min_m_compress_elements=0),
    "mini": lambda p: AdamMini(p, seed=1, n_heads=2, m_dtype="fp8"),
    "lamb": lambda p: LAMB(p, seed=1),
}
KNOWN_TO_GLOO_AND_NCCL = {torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8}


def entries(optimizer: Any) -> list[dict[str, Tensor]]:
    return [dict(optimizer.state[p]) for group in optimizer.param_groups for p in group["params"]]


def coded(optimizer: Any) -> int:
    """Return the index of the first parameter whose first moment has codes."""
    return next(i for i, entry in enumerate(entries(optimizer)) if "exp_avg.codes" in entry)


def assert_same_state(a: Any, b: Any) -> None:
    for left, right in zip(entries(a), entries(b), strict=True):
        assert left.keys() == right.keys()
        for key, value in left.items():
            assert value.dtype == right[key].dtype
            assert torch.equal(value, right[key]), key


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_has_dtypes_that_collectives_carry(kind: str, make_model, train) -> None:
    model = make_model()
    optimizer = KINDS[kind](model.named_parameters())
    train(model, optimizer, 2)
    saved = optimizer.state_dict()
    assert {
        value.dtype for entry in saved["state"].values() for value in entry.values()
    } <= KNOWN_TO_GLOO_AND_NCCL
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    other = KINDS[kind](copy.deepcopy(model).named_parameters())
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_same_state(other, optimizer)


@pytest.mark.parametrize("kind", KINDS)
def test_state_saved_as_16_bit_integers_still_loads(kind: str, make_model, train) -> None:
    model = make_model()
    optimizer = KINDS[kind](model.named_parameters())
    train(model, optimizer, 2)
    older = torch.optim.Optimizer.state_dict(optimizer)
    other = KINDS[kind](copy.deepcopy(model).named_parameters())
    other.load_state_dict(older)
    assert_same_state(other, optimizer)


def test_codes_in_a_state_dict_are_the_optimizers_own(make_model, train) -> None:
    model = make_model()
    optimizer = LUMA(model.named_parameters())
    train(model, optimizer, 1)
    first = coded(optimizer)
    codes, own = optimizer.state_dict()["state"][first], entries(optimizer)[first]
    codes, own = codes["exp_avg.codes"], own["exp_avg.codes"]
    assert codes.dtype == torch.uint8
    assert codes.shape == (*own.shape, 2)
    assert codes.data_ptr() == own.data_ptr()


@pytest.mark.parametrize(
    "laid_out",
    [
        lambda b: b.transpose(0, 1).contiguous().transpose(0, 1),
        lambda b: b.transpose(0, 2).contiguous().transpose(0, 2),
        lambda b: torch.cat([b.new_zeros(1), b.reshape(-1)])[1:].view(b.shape),
        lambda b: b.repeat_interleave(2, dim=1)[:, ::2],
    ],
    ids=["transposed", "bytes apart", "odd offset", "every second"],
)
def test_bytes_are_read_however_they_lie(laid_out) -> None:
    codes = torch.arange(-300, 300, dtype=torch.int16).view(20, 30)
    given = laid_out(as_bytes(codes))
    assert torch.equal(from_bytes(given, torch.int16), codes)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (4, 1)])
def test_any_shape_goes_there_and_back(shape: tuple[int, ...]) -> None:
    codes = torch.randint(-(2**15), 2**15, shape, dtype=torch.int16)
    sent = as_bytes(codes)
    assert sent.shape == (*shape, 2)
    assert torch.equal(from_bytes(sent, torch.int16), codes)


@pytest.mark.parametrize(
    "wrong",
    [lambda b: b[..., :1], lambda b: b[:-1], lambda b: b.view(torch.int8), lambda b: b.half()],
)
def test_what_are_not_the_codes_is_refused(wrong, make_model, train) -> None:
    model = make_model()
    optimizer = LUMA(model.named_parameters())
    train(model, optimizer, 1)
    saved = optimizer.state_dict()
    entry = saved["state"][coded(optimizer)]
    entry["exp_avg.codes"] = wrong(entry["exp_avg.codes"])
    before = copy.deepcopy(entries(optimizer))
    with pytest.raises(StateMismatchError, match=r"'exp_avg.codes' is .* it must be torch.int16"):
        optimizer.load_state_dict(saved)
    for left, right in zip(entries(optimizer), before, strict=True):
        assert all(torch.equal(left[key], right[key]) for key in left)


def test_a_state_dict_hook_may_put_other_things_into_the_state(make_model, train) -> None:
    model = make_model()
    optimizer = LUMA(model.named_parameters())
    train(model, optimizer, 1)
    optimizer.register_state_dict_post_hook(lambda _, saved: saved["state"].update(note="kept"))
    assert optimizer.state_dict()["state"]["note"] == "kept"


def dry_step(optimizer: torch.optim.Optimizer) -> None:
    """Take the step by which PyTorch makes state: `_init_optim_state` of its checkpoints."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.zeros_like(param) if param.requires_grad else None
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(0.0) if isinstance(group["lr"], Tensor) else 0.0
    optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    optimizer.zero_grad()


@pytest.mark.parametrize("kind", KINDS)
def test_making_state_is_no_step(kind: str, make_model, train) -> None:
    plain, model = make_model(), make_model()
    for frozen in (plain, model):
        next(frozen.parameters()).requires_grad_(False)
    one, two = (KINDS[kind](m.named_parameters()) for m in (plain, model))
    dry_step(two)
    assert {int(entry["step"]) for entry in two.state.values()} == {0}
    assert len(two.state) == len(list(model.parameters())) - 1
    train(plain, one, 3)
    train(model, two, 3)
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)
        assert one.state[a].keys() == two.state[b].keys()
        assert all(torch.equal(one.state[a][key], two.state[b][key]) for key in one.state[a])


@pytest.mark.parametrize("how", ["a gradient", "a rate", "a step before", "a missing gradient"])
def test_other_steps_count(how: str) -> None:
    layer = nn.Linear(40, 3)
    optimizer = LUMA(layer.named_parameters(), lr=1e-3 if how == "a rate" else 0.0)
    for param in layer.parameters():
        param.grad = torch.zeros_like(param)
    if how == "a gradient":
        layer.weight.grad[2, 7] = torch.nan
    elif how == "a step before":
        optimizer.init_state()
    elif how == "a missing gradient":
        layer.bias.grad = None
    optimizer.step()
    assert int(optimizer.state[layer.weight]["step"]) == 1
