"""What takes Adam-mini apart in the fidelity benchmark is Adam-mini where all parts share."""

import copy

import pytest
import torch
from torch import nn

from benchmarks.fidelity.model import GPT2
from benchmarks.fidelity.optimizers import Job, entry_of
from benchmarks.fidelity.segments import read_name
from benchmarks.fidelity.settings import SIZES
from luma_core import AdamMini
from luma_core.errors import ConfigurationError


def stepped(build: str | None, model: GPT2, lr: float = 1e-2) -> list[nn.Parameter]:
    """Return a copy's parameters after three steps with the same gradients."""
    model = copy.deepcopy(model)
    job = Job(model=model, lr=lr, seed=0)
    optimizer: torch.optim.Optimizer
    if build is None:
        groups, heads = job.groups(named=True), model.size.heads
        optimizer = AdamMini(groups, model=model, n_heads=heads, m_dtype="fp32", **job.options)
    else:
        entry = entry_of(build)
        assert entry is not None
        optimizer = entry.build(job)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for param in model.parameters():
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()
    return list(model.parameters())


@pytest.fixture(scope="module")
def model() -> GPT2:
    torch.manual_seed(0)
    return GPT2(SIZES["tiny"], 64)


def test_sharing_in_all_parts_is_adam_mini(model: GPT2) -> None:
    pairs = zip(
        stepped("segments:embedding+attention+mlp", model), stepped(None, model), strict=True
    )
    for probe, adam_mini in pairs:
        torch.testing.assert_close(probe, adam_mini, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("modifier", ["scale0.5", "clip0.1", "power1", "beta20.9"])
def test_a_modifier_changes_matrices(model: GPT2, modifier: str) -> None:
    plain = stepped("segments:mlp", model)
    other = stepped(f"segments:mlp/{modifier}", model)
    matrices = [i for i, param in enumerate(plain) if param.ndim > 1]
    assert any(not torch.equal(plain[i], other[i]) for i in matrices)


@pytest.mark.parametrize("name", ["segments:heads", "segments:mlp/twice2", "segments:mlp/scalex"])
def test_an_unknown_part_or_modifier_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="segments:"):
        read_name(name)
