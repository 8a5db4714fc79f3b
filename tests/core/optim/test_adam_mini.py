"""An Adam-mini step: the formula, its reference implementation, and what users meet around it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterable

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from luma_core import AdamMini
from luma_core.codecs import FP8E4M3, BlockGrid, Luma16V, Partition, SegmentMean, TableM
from luma_core.errors import ConfigurationError, UnknownCodecError
from luma_core.optim import parity_check
from luma_core.partition import partition_names
from tests.crossing import crossed


class Attention(nn.Module):
    """A language model of one layer: every kind of cut, with grouped queries."""

    def __init__(self) -> None:
        super().__init__()
        self.n_heads, self.head_dim = 4, 16
        self.embed = nn.Embedding(40, 48)
        self.q_proj = nn.Linear(48, 64)
        self.k_proj = nn.Linear(48, 32, bias=False)
        self.v_proj = nn.Linear(48, 32, bias=False)
        self.o_proj = nn.Linear(32, 48, bias=False)
        self.norm = nn.LayerNorm(48)
        self.lm_head = nn.Linear(48, 40, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        q = self.q_proj(x).unflatten(-1, (2, 2, 16)).sum(2).transpose(1, 2)
        k, v = (p(x).unflatten(-1, (2, 16)).transpose(1, 2) for p in (self.k_proj, self.v_proj))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.lm_head(self.norm(x + self.o_proj(mixed.transpose(1, 2).flatten(2))))


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    tokens = torch.randint(40, (8, 12), generator=torch.Generator().manual_seed(step))
    logits = model(tokens).float()
    return nn.functional.cross_entropy(logits.flatten(0, 1), ((7 * tokens + 3) % 40).flatten())


def make(dtype: torch.dtype = torch.float32) -> Attention:
    torch.manual_seed(0)
    return Attention().to(dtype)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, start: int = 0) -> float:
    for step in range(start, start + steps):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
    return loss.item()


class Reference(torch.optim.Optimizer):
    """The formula in float64, segment by segment of a table."""

    def __init__(self, model, table, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        self.parts = {p: table[n].partition for n, p in model.named_parameters()}
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(model.parameters(), defaults)

    @torch.no_grad()
    def step(self) -> None:
        (group,) = self.param_groups
        (b1, b2), lr = group["betas"], float(group["lr"])
        for p in group["params"]:
            state = self.state[p]
            if not state:
                state.update(t=0, m=torch.zeros_like(p).double(), p=p.detach().double().clone())
                state["v"] = torch.zeros(self.parts[p].segments, dtype=torch.float64)
            state["t"] += 1
            part, grad = self.parts[p], p.grad.double()
            mean = part.sums(p.grad.float(), of=lambda x: x) * 0
            ids = part.spread(torch.arange(part.segments), 0, part.numel)
            mean = mean.index_add(0, ids, grad.reshape(-1) ** 2) / part.segment_elements()
            state["m"] = b1 * state["m"] + (1 - b1) * grad
            state["v"] = b2 * state["v"] + (1 - b2) * mean
            root = (state["v"] / (1 - b2 ** state["t"])).sqrt() + group["eps"]
            update = state["m"] / (1 - b1 ** state["t"]) / root[ids].view(p.shape)
            state["p"] = state["p"] * (1 - lr * group["weight_decay"]) - lr * update
            p.copy_(state["p"])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.1, "lr": 1e-2},
        {"betas": (0.5, 0.9), "eps": 1e-4},
        {"lr": torch.tensor(0.002)},
    ],
    ids=str,
)
def test_the_rule_is_the_formula(options) -> None:
    def ours(model: nn.Module) -> AdamMini:
        return AdamMini(model.parameters(), model=model, m_dtype="fp32", **options)

    model = make()
    table = AdamMini(model.parameters(), model=model).partition
    report = parity_check(lambda m: Reference(m, table, **options), ours, model=model, steps=20)
    # Parameters of size up to 4 are rounded to float32 twenty times.
    assert max(row.max_difference for row in report.rows) < 2e-6, str(report)


def test_maximize_is_descent_on_the_negated_gradient() -> None:
    report = parity_check(
        lambda m: AdamMini(m.named_parameters(), n_heads=4, m_dtype="fp32", maximize=True),
        lambda m: AdamMini(m.named_parameters(), n_heads=4, m_dtype="fp32"),
        model=nn.Linear(4, 3),
        steps=3,
        gradient=lambda name, param, step: torch.full(param.shape, 0.1),
    )
    assert all(row.moved > 0 for row in report.rows)
    assert report.worst.relative == pytest.approx(2, rel=1e-4)


def test_the_official_implementation_agrees_where_its_partition_is_right() -> None:
    official = pytest.importorskip("adam_mini")

    class Square(nn.Module):
        """Heads of dim / n_heads and no grouped queries: what it can cut."""

        def __init__(self) -> None:
            super().__init__()
            self.wte = nn.Embedding(30, 64)
            self.wq, self.wk, self.wv, self.wo = (nn.Linear(64, 64, bias=False) for _ in range(4))
            self.mlp = nn.Linear(64, 80)
            self.norm = nn.LayerNorm(64)
            self.lm_head = nn.Linear(64, 30, bias=False)

    def theirs(model: nn.Module) -> torch.optim.Optimizer:
        options = {"lr": 1e-3, "weight_decay": 0.1, "dim": 64, "n_heads": 4, "verbose": False}
        return official.Adam_mini(model.named_parameters(), **options)

    def ours(model: nn.Module) -> AdamMini:
        plain = [item for item in model.named_parameters() if item[1].dim() < 2]
        decayed = [item for item in model.named_parameters() if item[1].dim() == 2]
        # It keeps one second moment for a norm's whole weight, except for biases.
        return AdamMini(
            [{"params": decayed, "weight_decay": 0.1}, {"params": plain}],
            n_heads=4,
            m_dtype="fp32",
            overrides={"norm.weight": "whole"},
        )

    report = parity_check(theirs, ours, model=Square(), steps=30)
    assert report.worst.relative < 5e-6, str(report)


@pytest.mark.parametrize(
    ("m_dtype", "block_size", "dtype"),
    crossed(
        ["fp32", "bf16", "fp8", "luma16", TableM(bits=4).to_dict()],
        [128, 16, None],
        [torch.float32, torch.bfloat16],
    ),
)
def test_training_with_any_first_moment_follows_adamw(m_dtype, block_size, dtype) -> None:
    model, twin = make(dtype), make()
    if isinstance(m_dtype, dict):
        m_dtype = {**m_dtype, "block_size": block_size or 64}
    optimizer = AdamMini(
        model.named_parameters(), 3e-3, model=model, m_dtype=m_dtype, block_size=block_size, seed=1
    )
    ours = train(model, optimizer, 60)
    theirs = train(twin, torch.optim.AdamW(twin.parameters(), 3e-3), 60)
    assert theirs < 0.5
    assert ours == pytest.approx(theirs, abs=0.2)


def test_state_is_one_second_moment_per_segment() -> None:
    model = make()
    optimizer = AdamMini(model.named_parameters(), model=model, seed=1)
    train(model, optimizer, 1)
    stored = {
        name: {key: (t.dtype, tuple(t.shape)) for key, t in optimizer.state[param].items()}
        for name, param in model.named_parameters()
    }
    scalar = (torch.int64, ())
    head = {"step": scalar, "noise_key": scalar, "nonfinite": scalar}
    assert stored["q_proj.weight"] == {
        **head,
        "exp_avg.value": (torch.bfloat16, (64, 48)),
        "exp_avg_sq.value": (torch.float32, (4,)),
    }
    assert stored["embed.weight"]["exp_avg_sq.value"] == (torch.float32, (40,))
    assert stored["norm.weight"]["exp_avg.value"] == (torch.float32, (48,))
    assert stored["norm.weight"]["exp_avg_sq.value"] == (torch.float32, (48,))


def gpt2_shapes() -> dict[str, tuple[int, ...]]:
    """GPT-2 124M as in transformers."""
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (50257, 768), "wpe.weight": (1024, 768)}
    for layer in range(12):
        for name, size in {"c_attn": 2304, "c_proj": 768}.items():
            shapes[f"h.{layer}.attn.{name}.weight"] = (768, size)
            shapes[f"h.{layer}.attn.{name}.bias"] = (size,)
        for name, (rows, cols) in {"c_fc": (768, 3072), "c_proj": (3072, 768)}.items():
            shapes[f"h.{layer}.mlp.{name}.weight"] = (rows, cols)
            shapes[f"h.{layer}.mlp.{name}.bias"] = (cols,)
        shapes |= {f"h.{layer}.ln_{n}.{p}": (768,) for n in (1, 2) for p in ("weight", "bias")}
    return {**shapes, "ln_f.weight": (768,), "ln_f.bias": (768,)}


@pytest.mark.parametrize(("m_dtype", "bits"), [("bf16", 16.5), ("fp8", 8.5), ("luma16", 16.5)])
def test_state_of_gpt2_in_bits_per_parameter(m_dtype, bits) -> None:
    params = {name: nn.Parameter(torch.empty(shape, device="meta")) for name, shape in
              gpt2_shapes().items()}  # fmt: skip
    optimizer = AdamMini(params.items(), n_heads=12, m_dtype=m_dtype)
    optimizer.init_state()
    elements = sum(param.numel() for param in params.values())
    assert elements == 124_439_808
    state = sum(t.nbytes for entry in optimizer.state.values() for t in entry.values())
    assert 8 * state / elements < bits
    assert optimizer.partition.segments < 250_000


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (1, 1), (5, 3), (3, 129), (2, 3, 40)], ids=str)
@pytest.mark.parametrize("m_dtype", ["bf16", "fp8"])
def test_odd_shapes_step(shape, m_dtype) -> None:
    param = nn.Parameter(torch.ones(shape))
    optimizer = AdamMini([("w", param)], lr=0.1, m_dtype=m_dtype, seed=0, min_compress_elements=0)
    for _ in range(3):
        param.grad = torch.full(shape, 0.5)
        optimizer.step()
    torch.testing.assert_close(param.detach(), torch.full(shape, 0.7), rtol=0.05, atol=0)


class LargestAllocation(TorchDispatchMode):
    """Remembers the largest storage that was made, in bytes, apart from those of ``known``."""

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for out in tree_leaves(result):
            if isinstance(out, torch.Tensor):
                storage = out.untyped_storage()
                if storage.data_ptr() not in self.known:
                    self.bytes = max(self.bytes, storage.nbytes())
        return result


@pytest.mark.parametrize("cut", ["row", "column", "whole", "head"])
def test_temporaries_do_not_grow_with_the_tensor(cut, monkeypatch) -> None:
    tile = 1 << 12
    monkeypatch.setattr("luma_core.codecs.segments.TILE_ELEMENTS", tile)
    monkeypatch.setattr(BlockGrid.tiles, "__defaults__", (tile,))
    param = nn.Parameter(torch.randn(512, 384))
    overrides = {"w": cut}
    optimizer = AdamMini(
        [("w", param)], seed=0, overrides=overrides, head_dim=64, backend="pytorch"
    )
    optimizer.init_state()
    param.grad = torch.randn_like(param)
    known = [param, param.grad, *optimizer.state[param].values()]
    with LargestAllocation(known) as largest:
        optimizer.step()
    # The widest are int32 random bits with their blocks, and float64 sums.
    assert 4 * tile // 2 < largest.bytes <= 8 * (tile + 384)


def test_groups_added_later_are_cut_too_and_survive_pickling() -> None:
    model = make()
    named = dict(model.named_parameters())
    first = [(name, named[name]) for name in ("q_proj.weight", "embed.weight")]
    optimizer = AdamMini(first, n_heads=4, overrides={"embed*": "vector"}, seed=1)
    for twin in (optimizer, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):  # noqa: S301
        twin.add_param_group(
            {"params": [("k_proj.weight", nn.Parameter(torch.ones(32, 48)))], "m_dtype": "fp32"}
        )
        assert [row.partition.segments for row in twin.partition] == [4, 40, 4]
        assert "m_dtype" not in twin.param_groups[1]
        assert twin.param_groups[1]["codecs"]["exp_avg"]["name"] == "fp32"


def test_a_table_made_before_is_used_as_it_is() -> None:
    model = make()
    table = partition_names(model.named_parameters(), n_heads=4)
    assert AdamMini(model.named_parameters(), partition=table).partition == table
    with pytest.raises(ConfigurationError, match=r"partition=... excludes n_heads"):
        AdamMini(model.named_parameters(), partition=table, n_heads=4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda m: AdamMini(m.named_parameters()), "'q_proj.weight'.* n_heads is missing"),
        (lambda m: AdamMini(m.parameters()), "parameter 0 has no name, and no model tells"),
        (lambda m: AdamMini(m.parameters(), model=nn.Linear(2, 2)), "has no name"),
        (lambda m: AdamMini(m.norm.named_parameters(), m_dtype="fp4"), "m_dtype='fp4' must be one"),
        (
            lambda m: AdamMini(m.norm.named_parameters(), m_dtype=Luma16V().to_dict()),
            "must be a codec of first moments",
        ),
        (
            lambda m: AdamMini(
                m.norm.named_parameters(),
                m_dtype=SegmentMean(partition=Partition.whole((1,))).to_dict(),
            ),
            "must be a codec of first moments",
        ),
    ],
)
def test_what_cannot_work_is_a_clear_error(build, message) -> None:
    with pytest.raises((ConfigurationError, UnknownCodecError), match=message):
        build(make())


def test_telemetry_says_what_the_last_step_did() -> None:
    torch.manual_seed(0)
    param = nn.Parameter(torch.randn(6, 256))
    idle = nn.Parameter(torch.ones(2, 2))
    optimizer = AdamMini([("w", param), ("idle", idle)], lr=0.01, m_dtype="fp8", seed=0)
    assert optimizer.telemetry() == []
    for _ in range(3):
        before = param.detach().clone()
        param.grad = torch.randn_like(param)
        optimizer.step()
    (row,) = optimizer.telemetry()
    assert (row.name, row.dtype) == ("w", FP8E4M3.name)
    moved = (param.detach() - before).abs().amax(dim=1)
    torch.testing.assert_close(row.max_update, moved, rtol=0.13, atol=0)
    state = optimizer.state[param]
    assert torch.equal(row.second, state["exp_avg_sq.value"])
    assert row.scale is not None
    assert row.scale.shape == (6, 2)
    assert (row.max_first <= row.scale.amax(dim=1)).all()
    assert (row.max_first > row.scale.amax(dim=1) / 4).all()


def test_no_parameters_are_an_error_as_in_torch() -> None:
    with pytest.raises(ValueError, match="empty parameter list"):
        AdamMini([])
