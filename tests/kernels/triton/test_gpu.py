"""Promises that only a GPU can show: graphs, no synchronisation, fresh tables, sizes, memory."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from luma_core import LUMA

pytest.importorskip("triton")
pytestmark = pytest.mark.gpu


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 100, bias=False))
    return layers.to("cuda", dtype)


def loss_of(net: nn.Module, step: int) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(step)
    dtype = next(net.parameters()).dtype
    x = torch.randn(32, 256, generator=generator, device="cuda").to(dtype)
    return net(x).float().square().mean()


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss_of(net, step).backward()
        optimizer.step()


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def same_state(a: LUMA, b: LUMA) -> bool:
    pairs = zip(a.parameter_states(), b.parameter_states(), strict=True)
    return all(
        x.step == y.step and all(torch.equal(x.fields[k], y.fields[k]) for k in x.fields)
        for x, y in pairs
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("block_size", [128, None])
def test_a_captured_graph_replays_the_uncaptured_steps(
    dtype: torch.dtype, block_size: int | None
) -> None:
    nets = [model(dtype) for _ in range(2)]
    lrs = [torch.tensor(1e-3, device="cuda") for _ in nets]
    optimizers = [
        LUMA(net.parameters(), lr, capturable=True, seed=1, block_size=block_size)
        for net, lr in zip(nets, lrs, strict=True)
    ]
    grads = [[torch.zeros_like(p) for p in net.parameters()] for net in nets]
    for net, buffers in zip(nets, grads, strict=True):
        for param, grad in zip(net.parameters(), buffers, strict=True):
            param.grad = grad

    def fill(step: int) -> None:
        generator = torch.Generator("cuda").manual_seed(step)
        for first, second in zip(*grads, strict=True):
            first.normal_(generator=generator)
            second.copy_(first)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for step in range(2):
            fill(step)
            for optimizer in optimizers:
                optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizers[1].step()
    for step in range(2, 8):
        fill(step)
        for lr in lrs:
            lr.fill_(1e-3 / (step + 1))
        optimizers[0].step()
        graph.replay()
    assert same(*nets)
    assert same_state(*optimizers)
    assert optimizers[1].parameter_states()[0].step == 8


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_capture_without_capturable_is_refused() -> None:
    net = model()
    optimizer = LUMA(net.parameters(), seed=1)
    train(net, optimizer, range(1))
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(ValueError, match="capturable=False"), torch.cuda.graph(graph):
        optimizer.step()


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("block_size", [128, None])
def test_a_step_never_waits_for_the_device(block_size: int | None) -> None:
    net = model()
    optimizer = LUMA(net.parameters(), seed=1, block_size=block_size)
    train(net, optimizer, range(2))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(2, 5):
            optimizer.param_groups[0]["lr"] = 1e-3 / step
            for param in net.parameters():
                param.grad = torch.ones_like(param)
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_tables_follow_every_change() -> None:
    """Two twins take the same odd life, one fused and one eager; they must not drift apart."""

    def life(backend: str) -> nn.Module:
        net = model()
        optimizer = LUMA(net.named_parameters(), seed=1, backend=backend, lr=1e-2)
        params = list(net.parameters())

        def step(skip: int | None = None) -> None:
            generator = torch.Generator("cuda").manual_seed(len(optimizer.state))
            for index, param in enumerate(params):
                grad = torch.randn(param.shape, generator=generator, device="cuda")
                param.grad = None if index == skip else grad
            optimizer.step()

        step()
        step(skip=1)
        for param in params:
            param.data = param.data.clone()
        step()
        extra = nn.Parameter(torch.ones(300, 64, device="cuda"))
        params.append(extra)
        optimizer.add_param_group({"params": [("extra", extra)], "lr": 0.5})
        step()
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        step()
        optimizer.param_groups[0]["weight_decay"] = 0.5
        step(skip=0)
        net.register_parameter("extra", extra)
        return net

    fused, eager = life("triton"), life("pytorch")
    for p, q in zip(fused.parameters(), eager.parameters(), strict=True):
        # One code apart in a moment is 1e-3 of an update, and lr is up to 0.5.
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-3)


def test_a_parameter_that_grew_is_refused() -> None:
    param = nn.Parameter(torch.ones(64, 128, device="cuda"))
    optimizer = LUMA([("weight", param)], seed=1)
    param.grad = torch.ones_like(param)
    optimizer.step()
    param.data = torch.ones(96, 128, device="cuda")
    param.grad = torch.ones_like(param)
    with pytest.raises(ValueError, match="The parameter changed its shape"):
        optimizer.step()


def test_grad_scaler_without_synchronisation_in_the_optimizer() -> None:
    net = model(torch.float32)
    optimizer = LUMA(net.parameters(), lr=1e-3, seed=1)
    reference = copy.deepcopy(net)
    plain = LUMA(reference.parameters(), lr=1e-3, seed=1)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10, growth_interval=1000)
    for step in range(4):
        optimizer.zero_grad()
        scaler.scale(loss_of(net, step)).backward()
        if step == 2:
            next(net.parameters()).grad[0, 0] = torch.inf  # type: ignore[index]
        scaler.step(optimizer)
        scaler.update()
        if step != 2:
            train(reference, plain, range(step, step + 1))
    assert optimizer._step_supports_amp_scaling
    assert optimizer.parameter_states()[0].step == 3
    for p, q in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # torch.compile warns of much
def test_inside_a_compiled_training_step() -> None:
    net = model()
    optimizer = LUMA(net.parameters(), seed=1)

    def training_step(x: torch.Tensor) -> torch.Tensor:
        loss = net(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    compiled = torch.compile(training_step)
    losses = [float(compiled(torch.ones(8, 256, device="cuda"))) for _ in range(5)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_needs_at_most_a_hundredth_of_a_byte_per_parameter(dtype: torch.dtype) -> None:
    params = [nn.Parameter(torch.zeros(4096, 4096, device="cuda", dtype=dtype)) for _ in range(8)]
    optimizer = LUMA(params, seed=1)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.init_state()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    optimizer.step()
    optimizer.step()
    elements = sum(param.numel() for param in params)
    assert (torch.cuda.max_memory_allocated() - before) / elements <= 0.01


def test_a_tensor_of_more_than_two_to_the_31_elements() -> None:
    count = 2**31 + 3 * 2**20 + 77
    param = nn.Parameter(torch.ones(count, device="cuda", dtype=torch.bfloat16))
    param.grad = torch.ones_like(param)
    optimizer = LUMA([param], lr=0.5, weight_decay=0.0, seed=1)
    optimizer.step()
    state: dict[str, Any] = optimizer.state[param]
    assert float(param.detach()[-200:].float().mean()) == pytest.approx(0.5, abs=0.01)
    assert float(param.detach()[:200].float().mean()) == pytest.approx(0.5, abs=0.01)
    assert int((state["exp_avg.codes"] == 0).sum()) == 0
    assert int((state["exp_avg_sq.codes"] == 0).sum()) == 0
    assert state["exp_avg.exponent"][-1] == state["exp_avg.exponent"][0]


def test_a_graph_survives_what_happens_after_its_capture() -> None:
    """Uncaptured steps from other gradients rebuild the tables; the graph must keep its own."""
    param = nn.Parameter(torch.ones(512, 512, device="cuda"))
    lr = torch.tensor(1e-2, device="cuda")
    optimizer = LUMA([param], lr, capturable=True, seed=1, weight_decay=0.0)
    own = torch.ones_like(param)
    param.grad = own
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for _ in range(3):
        param.grad = torch.ones_like(param)
        optimizer.param_groups[0]["weight_decay"] = 0.0
        optimizer.step()
    junk = [torch.full((64, 1024), 7.0, device="cuda") for _ in range(64)]
    before = param.detach().clone()
    graph.replay()
    torch.cuda.synchronize()
    assert all(bool((tensor == 7).all()) for tensor in junk)
    torch.testing.assert_close(
        before - param.detach(), torch.full_like(param, 1e-2), rtol=1e-2, atol=0
    )


def test_learning_rate_schedules_do_not_pile_up_memory() -> None:
    param = nn.Parameter(torch.ones(64, 128, device="cuda"))
    param.grad = torch.ones_like(param)
    optimizer = LUMA([param], seed=1)
    for step in range(50):
        optimizer.param_groups[0]["lr"] = 1e-3 / (step + 1)
        optimizer.step()
    kept = [
        fused._plan._staging for fused in optimizer._stepper._plan._fused.values() if fused._plan
    ]
    assert [len(tensors) for tensors in kept] == [0]


def test_gradients_elsewhere_at_every_step() -> None:
    """They are followed, are not kept alive, and the tables are otherwise those of the first."""
    nets = [model() for _ in range(2)]
    fused, eager = (
        LUMA(net.parameters(), seed=1, backend=backend)
        for net, backend in zip(nets, ("triton", "pytorch"), strict=True)
    )
    kept = []
    plans = set()
    for step in range(4):
        for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
            p.grad = torch.full_like(p, 1e-2 * (step + 1))
            q.grad = p.grad.clone()
            kept.append(p.grad)
        fused.step()
        eager.step()
        plans.update(id(item._plan) for item in fused._stepper._plan._fused.values())
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    assert len(plans) == 1
    size = sum(grad.numel() * grad.element_size() for grad in kept)
    before = torch.cuda.memory_allocated()
    fused.zero_grad()
    kept.clear()
    assert before - torch.cuda.memory_allocated() >= size


def test_a_scaler_of_any_alignment() -> None:
    params = [nn.Parameter(torch.ones(64, 128, device="cuda")) for _ in range(2)]
    optimizers = [LUMA([param], seed=1, backend="triton") for param in params]
    numbers = torch.tensor([0.0, 0.0, 0.0, 4.0, 4.0], device="cuda")
    for offset in (0, 1):
        for param, optimizer, first in zip(params, optimizers, (0, offset), strict=True):
            param.grad = torch.full_like(param, 4.0)
            optimizer.found_inf = numbers[first]
            optimizer.grad_scale = numbers[3 + first]
            optimizer.step()
    assert torch.equal(*params)
