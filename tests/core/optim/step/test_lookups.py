"""Gradients of lookups in embeddings, made of rows, have the bits of those that PyTorch makes."""

import pytest
import torch
from torch import Tensor, nn

from luma_core import LUMA
from luma_core.optim import step_in_backward

VOCABULARY, WIDTH = 90, 32


class Tokens(nn.Module):
    def __init__(self, *, tied: bool, **options: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH, **options)
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.inner(self.embedding(ids)).tanh())
        return logits.square().mean()


def train(model: nn.Module, optimizer: LUMA) -> None:
    for step in range(6):
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(0, VOCABULARY // 3, (4, 33), generator=generator)
        model(ids.int() if step % 2 else ids).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"padding_idx": 3}, {"max_norm": 1.0}, {"scale_grad_by_freq": True}],
    ids=lambda options: next(iter(options), "plain"),
)
def test_results_are_those_of_a_step_after_backward(tied: bool, options: dict[str, object]) -> None:
    plain, model = (Tokens(tied=tied, **options) for _ in range(2))
    train(plain, LUMA(plain.named_parameters(), seed=1, lr=1e-2))
    optimizer = LUMA(model.named_parameters(), seed=1, lr=1e-2)
    step_in_backward(model, optimizer)
    train(model, optimizer)
    for (name, a), (_, b) in zip(plain.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_removed_hooks_leave_dense_gradients() -> None:
    model = Tokens(tied=False)
    handle = step_in_backward(model, LUMA(model.named_parameters()))
    handle.remove()
    model(torch.tensor([1, 2, 2])).backward()
    assert not model.embedding.weight.grad.is_sparse


def test_an_embedding_of_a_class_of_its_own_keeps_what_it_does() -> None:
    class Scaled(nn.Embedding):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids) * 3.0

    model = nn.Sequential(Scaled(VOCABULARY, WIDTH))
    step_in_backward(model, LUMA(model.named_parameters()))
    ids = torch.tensor([5, 6])
    assert torch.equal(model(ids), model[0].weight[ids] * 3.0)


@pytest.mark.parametrize("count", [1, 7, 3 * VOCABULARY])
def test_a_gradient_has_no_more_rows_than_ids_or_the_vocabulary(count: int) -> None:
    model = Tokens(tied=False)
    step_in_backward(model, LUMA(model.named_parameters()))
    rows: list[int] = []
    model.embedding.weight.register_hook(lambda grad: rows.append(grad._nnz()))
    model(torch.arange(count) % VOCABULARY).backward()
    assert rows == [min(count, VOCABULARY)]
