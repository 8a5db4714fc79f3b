"""Stepping within backward under activation checkpointing: one step, of the whole gradient."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from luma_core import LAMB, LUMA, AdamMini, TurboAdam
from luma_core.errors import ConfigurationError
from luma_core.optim import step_in_backward

KINDS = {
    "luma": lambda p: LUMA(p, seed=1, lr=1e-2),
    "turbo": lambda p: TurboAdam(p, seed=1, min_m_compress_elements=0),
    "mini": lambda p: AdamMini(p, seed=1, n_heads=2),
    "lamb": lambda p: LAMB(p, seed=1),
}
again = partial(checkpoint, use_reentrant=True)


class Tied(nn.Module):
    """An output layer that is the token embedding, and a block that may be used many times."""

    def __init__(self, uses: Callable[["Tied", Tensor], Tensor]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(60, 32)
        self.block = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 32))
        self.norm = nn.LayerNorm(32)
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)
        self.output = nn.Linear(32, 60, bias=False)
        self.output.weight = self.embedding.weight
        self.uses = uses

    def forward(self, ids: Tensor) -> Tensor:
        return self.output(self.uses(self, self.embedding(ids)))

    def attend(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]

    def scaled(self, x: Tensor) -> Tensor:
        return self.norm(x) * self.norm.weight


def outside_and_inside(model: Tied, x: Tensor) -> Tensor:
    return again(model.block, model.block(x) + again(model.block, x))


def tied_inside(model: Tied, x: Tensor) -> Tensor:
    ids = torch.arange(7).repeat(x.shape[0], 1)
    return x + again(lambda y: model.norm(y) * model.embedding(ids), x)


USES = {
    "none": lambda m, x: m.block(m.block(x)),
    "once": lambda m, x: again(m.block, x),
    "twice": lambda m, x: again(m.block, again(m.block, x)),
    "three times": lambda m, x: again(m.block, again(m.block, again(m.block, x))),
    "nested": lambda m, x: again(lambda y: m.norm(again(m.block, y)) + m.block(y), x),
    "nested twice": lambda m, x: again(lambda y: again(lambda z: again(m.block, z), y), x),
    "outside and inside": outside_and_inside,
    "tied inside": tied_inside,
    "functional": lambda m, x: again(
        m.block, again(lambda y: functional.linear(y, m.block[2].weight @ m.block[2].weight.T), x)
    ),
    "attention": lambda m, x: again(m.attend, again(m.attend, x)) + m.attend(x),
    "scaled": lambda m, x: again(m.scaled, again(m.scaled, x)),
    "in a list": lambda m, x: torch.utils.checkpoint.checkpoint_sequential(
        m.block, 2, again(m.block, x), use_reentrant=True
    ),
    "not reentrant": lambda m, x: checkpoint(
        m.block, checkpoint(m.block, x, use_reentrant=False), use_reentrant=False
    ),
    "both": lambda m, x: again(
        lambda y: checkpoint(m.block, y, use_reentrant=False),
        checkpoint(m.block, x, use_reentrant=False),
    ),
}


def build(uses: str) -> Tied:
    torch.manual_seed(3)
    model = Tied(USES[uses])
    unused = [*model.attention.parameters()] if uses != "attention" else []
    for param in unused:
        param.requires_grad_(False)
    return model


def train(model: Tied, optimizer: torch.optim.Optimizer, steps: int = 3, **options: bool) -> None:
    for step in range(steps):
        ids = torch.randint(60, (4, 7), generator=torch.Generator().manual_seed(step))
        model(ids).logsumexp(-1).square().mean().backward(**options)
        optimizer.step()
        optimizer.zero_grad()


def named(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, param) for name, param in model.named_parameters() if param.requires_grad]


def both(uses: str, kind: str = "luma") -> tuple[Tied, Tied, torch.optim.Optimizer]:
    """Train two models, one by steps after backward; return them and the other's optimizer."""
    plain, model = build(uses), build(uses)
    train(plain, KINDS[kind](named(plain)))
    optimizer = KINDS[kind](named(model))
    step_in_backward(model, optimizer)
    train(model, optimizer)
    return plain, model, optimizer


def assert_same(plain: nn.Module, model: nn.Module) -> None:
    for (name, a), (_, b) in zip(plain.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("uses", USES)
def test_every_parameter_steps_once_with_its_whole_gradient(uses: str) -> None:
    plain, model, optimizer = both(uses)
    assert_same(plain, model)
    assert {int(entry["step"]) for entry in optimizer.state.values() if entry} == {3}
    assert all(param.grad is None for param in model.parameters())


@pytest.mark.parametrize("kind", ["turbo", "mini", "lamb"])
def test_it_holds_for_every_optimizer(kind: str) -> None:
    plain, model, _ = both("outside and inside", kind)
    assert_same(plain, model)


def kept_gradients(uses: str) -> int:
    """Return the most gradients that are there at a time."""
    model = build(uses)
    optimizer = LUMA(named(model))
    step_in_backward(model, optimizer)
    counts: list[int] = []
    for _, param in named(model):
        param.register_post_accumulate_grad_hook(
            lambda _: counts.append(sum(p.grad is not None for p in model.parameters()))
        )
    with torch.no_grad():
        model(torch.zeros(1, 7, dtype=torch.int64))
    train(model, optimizer, 2)
    return max(counts)


@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_gradients_wait_only_where_they_must() -> None:
    assert kept_gradients("none") == 0
    assert kept_gradients("not reentrant") == 0
    assert kept_gradients("once") == len(list(build("once").block.parameters()))


def test_a_model_that_is_trained_in_evaluation_mode() -> None:
    plain, model = build("tied inside").eval(), build("tied inside").eval()
    train(plain, LUMA(named(plain), seed=1))
    optimizer = LUMA(named(model), seed=1)
    step_in_backward(model, optimizer)
    train(model, optimizer)
    assert_same(plain, model)


@pytest.mark.parametrize("uses", ["twice", "tied inside"])
def test_a_backward_that_fails_leaves_the_next_one_whole(uses: str) -> None:
    plain, model = build(uses), build(uses)
    reference = LUMA(named(plain), seed=1)
    optimizer = LUMA(named(model), seed=1)
    train(plain, reference, 1)
    step_in_backward(model, optimizer)
    train(model, optimizer, 1)

    def fail(_: Tensor) -> None:
        raise RuntimeError("out of memory")

    ids = torch.zeros(2, 7, dtype=torch.int64)
    handle = model.block[0].weight.register_hook(fail)
    hidden = USES[uses](model, again(model.block, model.embedding(ids)))
    with pytest.raises(RuntimeError, match="out of memory"):
        hidden.sum().backward()
    handle.remove()
    optimizer.zero_grad()
    plain.load_state_dict(model.state_dict())
    reference.load_state_dict(optimizer.state_dict())
    train(plain, reference, 2)
    train(model, optimizer, 2)
    assert_same(plain, model)


def test_gradients_of_gradients_are_no_step() -> None:
    plain, model = build("none"), build("none")
    for each, within in ((plain, False), (model, True)):
        optimizer = LUMA(named(each), seed=1)
        if within:
            step_in_backward(each, optimizer)
        loss = each(torch.zeros(2, 7, dtype=torch.int64)).square().mean()
        slopes = torch.autograd.grad(loss, each.block[0].weight, create_graph=True)[0]
        (loss + slopes.square().sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_same(plain, model)


def test_what_nobody_can_tell_is_refused() -> None:
    weight = nn.Linear(32, 32, bias=False)
    optimizer = LUMA(weight.named_parameters(), seed=1)
    step_in_backward(weight, optimizer)
    start = weight.weight.detach().clone()
    x = torch.randn(2, 32, requires_grad=True)

    def product(y: Tensor) -> Tensor:
        return y @ weight.weight

    with pytest.raises(ConfigurationError, match=r"'weight'.*calls no module.*use_reentrant=False"):
        again(product, again(product, x)).sum().backward()
    assert torch.equal(weight.weight, start)
    weight.weight.grad = None
    with pytest.raises(ConfigurationError, match=r"'weight'.*in several parts"):
        weight(again(product, x)).sum().backward()
