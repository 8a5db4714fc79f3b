"""Cases of `test_training.py`: LUMA under PyTorch's own ways of training on several processes."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from runs import whole
from torch import Tensor, nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from luma_core import LAMB, LUMA, AdamMini, TurboAdam
from luma_core.errors import ConfigurationError
from luma_core.optim import step_in_backward


def _model() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(48, 70), nn.Tanh(), nn.LayerNorm(70), nn.Linear(70, 33))


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> list[float]:
    losses = []
    for step in range(steps):
        generator = torch.Generator().manual_seed(step * 7 + dist.get_rank())
        x = torch.randn(16, 48, generator=generator)
        optimizer.zero_grad()
        loss = (model(x).float() - x[:, :33]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _sharded(**options: object) -> nn.Module:
    model = _model()
    for layer in (model[0], model[3], model):
        fully_shard(layer, **options)
    return model


def _everywhere(values: list[Tensor]) -> list[list[Tensor]]:
    found: list = [None] * dist.get_world_size()
    dist.all_gather_object(found, values)
    return found


def replicas_stay_equal(folder: Path) -> None:
    model = DistributedDataParallel(_model())
    optimizer = TurboAdam(model.named_parameters(), lr=1e-2, seed=1, min_m_compress_elements=0)
    _train(model, optimizer)
    state = [t for s in optimizer.state.values() for t in s.values()]
    first, *others = _everywhere([p.detach() for p in model.parameters()] + state)
    for other in others:
        assert all(map(torch.equal, first, other))
    with pytest.raises(ConfigurationError, match="DistributedDataParallel"):
        step_in_backward(model, optimizer)


def zero_redundancy_is_replication(folder: Path) -> None:
    plain, model = (DistributedDataParallel(_model()) for _ in range(2))
    options = {"lr": 1e-2, "seed": 1}
    _train(plain, LUMA(plain.parameters(), **options))
    optimizer = ZeroRedundancyOptimizer(model.parameters(), LUMA, **options)
    _train(model, optimizer)
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        # Noise follows positions, which are others in each process's share.
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3)
    first, *others = _everywhere([p.detach() for p in model.parameters()])
    assert all(all(map(torch.equal, first, other)) for other in others)
    optimizer.consolidate_state_dict(to=0)
    if dist.get_rank() == 0:
        optimizer.load_state_dict(optimizer.state_dict())


def backward_steps_sharded(folder: Path) -> None:
    for make in (LUMA, AdamMini, LAMB):
        plain, model = _sharded(), _sharded()
        _train(plain, make(plain.named_parameters(), lr=1e-2, seed=1))
        optimizer = make(model.named_parameters(), lr=1e-2, seed=1)
        step_in_backward(model, optimizer)
        _train(model, optimizer)
        assert {state.step for state in optimizer.parameter_states()} == {5}
        pairs = zip(plain.named_parameters(), model.named_parameters(), strict=True)
        for (name, a), (_, b) in pairs:
            assert torch.equal(whole(a.detach()), whole(b.detach())), (make, name)


def scaled_gradients(folder: Path) -> None:
    model = _sharded()
    optimizer = LUMA(model.named_parameters(), lr=1e-2, seed=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = [whole(param.detach()) for param in model.parameters()]
    for step in range(3):
        x = torch.randn(16, 48, generator=torch.Generator().manual_seed(step))
        loss = scaler.scale(model(x).square().mean())
        loss.backward()
        if step == 1 and dist.get_rank() == 1:
            next(model.parameters()).grad.to_local().fill_(torch.inf)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    steps = {state.step for state in optimizer.parameter_states()}
    assert _everywhere([torch.tensor(sorted(steps))]) == [[torch.tensor([2])]] * 2
    assert scaler.get_scale() == 2.0**9
    assert not any(map(torch.equal, before, (whole(p.detach()) for p in model.parameters())))


def mixed_precision(folder: Path) -> None:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = _sharded(mp_policy=policy)
    optimizer = LUMA(model.named_parameters(), lr=1e-2, seed=1)
    losses = _train(model, optimizer, 20)
    assert losses[-1] < losses[0]
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def offloaded(folder: Path) -> None:
    model = _sharded(offload_policy=CPUOffloadPolicy(pin_memory=False))
    optimizer = LUMA(model.named_parameters(), lr=1e-2, seed=1)
    losses = _train(model, optimizer, 20)
    assert losses[-1] < losses[0]
