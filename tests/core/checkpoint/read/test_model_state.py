"""``load(model=)`` restores what the model's own ``load_state_dict`` would."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, spectral_norm

from luma_core import LUMA, checkpoint
from luma_core.checkpoint.read.reader import Checkpoint
from luma_core.errors import ConfigurationError, StateMismatchError


class Scaled(nn.Module):
    """Extra state as a tensor, which `state_dict` holds a copy of."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.amax = torch.zeros(3)

    def get_extra_state(self):
        return self.amax.clone()

    def set_extra_state(self, state):
        self.amax = state.clone()


class Noted(Scaled):
    """Extra state of plain values, of different length in each model."""

    def __init__(self):
        super().__init__()
        self.note = None

    def get_extra_state(self):
        return {"note": self.note, "amax": self.amax.clone(), 3: (1, float("nan"))}

    def set_extra_state(self, state):
        assert state[3][0] == 1
        self.note, self.amax = state["note"], state["amax"]


class Metric(nn.Module):
    """State in attributes that are neither parameters nor buffers, as torchmetrics has it."""

    def __init__(self):
        super().__init__()
        self.total = torch.zeros(())
        self.seen = []

    def state_dict(self, *args, prefix="", **options):
        found = super().state_dict(*args, prefix=prefix, **options)
        found[f"{prefix}total"] = self.total.clone()
        found[f"{prefix}seen"] = [x.clone() for x in self.seen]
        return found

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for name in ("total", "seen"):
            if prefix + name in state_dict:
                setattr(self, name, state_dict.pop(prefix + name))
        super()._load_from_state_dict(state_dict, prefix, *args)


class Hooked(nn.Module):
    """Keeps its weight halved and under another name."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.register_state_dict_post_hook(self._shown)
        self.register_load_state_dict_pre_hook(self._taken)
        self.loads = []
        self.register_load_state_dict_post_hook(lambda m, keys: m.loads.append(keys))

    @staticmethod
    def _shown(_module, state, prefix, _meta):
        state[f"{prefix}half"] = state.pop(f"{prefix}inner.weight") / 2

    @staticmethod
    def _taken(_module, state, prefix, *_):
        if f"{prefix}half" in state:
            state[f"{prefix}inner.weight"] = state.pop(f"{prefix}half") * 2


class Cast(nn.Linear):
    """Shows its weights in half precision and loads them as any module does."""

    def __init__(self):
        super().__init__(4, 4)
        self.register_state_dict_post_hook(
            lambda _m, state, prefix, _: state.update(
                {key: x.half() for key, x in state.items() if key.startswith(prefix)}
            )
        )


class Odd(nn.Module):
    """Buffers of all sorts."""

    def __init__(self):
        super().__init__()
        self.register_buffer("zero_d", torch.randn(()))
        self.register_buffer("count", torch.randint(9, ()))
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("view", torch.randn(6, 8)[::2, 1::3])
        self.register_buffer("passing", torch.randn(2), persistent=False)
        self.register_buffer("none", None)
        self.scale = nn.Parameter(torch.randn(4, 3).t())


def tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model


KINDS = {
    "extra state": Scaled,
    "plain extra state": Noted,
    "metric": Metric,
    "hooks": Hooked,
    "cast": Cast,
    "buffers": Odd,
    "tied": tied,
    "norms": lambda: nn.Sequential(nn.BatchNorm1d(4), nn.InstanceNorm1d(4, affine=True)),
    "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(4, 4)),
    "old spectral_norm": lambda: spectral_norm(nn.Linear(4, 4)),
    "checkpoint_wrapper": lambda: checkpoint_wrapper(nn.Linear(4, 4)),
    "rnn": lambda: nn.LSTM(4, 4),
}


class Whole(nn.Module):
    """The kind at hand, deep inside, beside plain modules."""

    def __init__(self, kind):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.blocks = nn.ModuleList([nn.ModuleDict({"a": KINDS[kind]()}) for _ in range(2)])
        self.last = nn.Linear(4, 4)


def changed(model):
    """Give every tensor of a model, in whatever attribute, other values."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.copy_(torch.randint(1, 50, tensor.shape).to(tensor.dtype))
        for module in model.modules():
            if isinstance(module, Scaled):
                module.amax = torch.rand(3)
                module.note = {"deep": ["x", b"y"]}
            if isinstance(module, Metric):
                module.total = torch.tensor(7.0)
                module.seen = [torch.ones(2), torch.zeros(())]
    return model


def shown(model):
    """Everything that a model keeps, with tensors as lists."""

    def plain(value):
        if isinstance(value, torch.Tensor):
            return [str(value.dtype), list(value.shape), value.tolist()]
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(x) for x in value] if isinstance(value, list | tuple) else value

    return repr({key: plain(value) for key, value in model.state_dict().items()})


def saved(place, model):
    checkpoint.save(place, optimizer=LUMA(nn.Linear(2, 2).parameters()), model=model)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("root", [True, False], ids=["root", "inside"])
def test_a_model_is_restored_as_by_load_state_dict(tmp_path, kind, root):
    torch.manual_seed(0)
    source = changed(KINDS[kind]() if root else Whole(kind))
    saved(tmp_path, source)
    assert checkpoint.verify(tmp_path).ok
    model = KINDS[kind]() if root else Whole(kind)
    expected = copy.deepcopy(model)
    expected.load_state_dict(copy.deepcopy(source.state_dict()))
    parameters = list(model.parameters())
    before = shown(model)
    checkpoint.load(tmp_path, model=model)
    assert shown(model) == shown(expected) == shown(source) != before
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))


def test_hooks_see_the_names_and_the_keys_that_they_would_see(tmp_path):
    saved(tmp_path, Whole("hooks"))
    model = Whole("hooks")
    seen = []
    hook = lambda _m, state, prefix, *_: seen.append((prefix, sorted(state)))  # noqa: E731
    model.blocks[1]["a"].register_load_state_dict_pre_hook(hook)
    checkpoint.load(tmp_path, model=model)
    keys = [f"blocks.1.a.{name}" for name in ("inner.bias", "inner.weight")]
    assert seen == [("blocks.1.a.", keys)]
    assert [tuple(map(list, found)) for found in model.blocks[0]["a"].loads] == [([], [])]


def test_keys_that_a_hook_renames_are_found(tmp_path):
    class Old(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

    class New(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = nn.Linear(4, 4)
            self.register_load_state_dict_pre_hook(self._renamed)

        @staticmethod
        def _renamed(_module, state, prefix, *_):
            for key in [key for key in state if key.startswith(f"{prefix}fc.")]:
                state[key.replace("fc.", "dense.")] = state.pop(key)

    old, new = Old(), New()
    saved(tmp_path, old)
    checkpoint.load(tmp_path, model=new)
    assert torch.equal(old.fc.weight, new.dense.weight)
    saved(tmp_path / "new", new)
    with pytest.raises(StateMismatchError, match="model tensors differ"):
        checkpoint.load(tmp_path / "new", model=old)


@pytest.mark.parametrize("kind", ["extra state", "plain extra state", "norms", "hooks", "tied"])
def test_a_model_on_meta_is_given_what_is_stored(tmp_path, kind):
    source = changed(Whole(kind))
    source.first.weight.requires_grad_(False)
    saved(tmp_path, source)
    model = Whole(kind).to("meta")
    for module in model.modules():
        if isinstance(module, Scaled):
            module.amax = torch.zeros(3)
    if kind == "tied":
        for block in model.blocks:
            block["a"][1].weight = block["a"][0].weight
    model.first.weight.requires_grad_(False)
    checkpoint.load(tmp_path, model=model)
    assert shown(model) == shown(source)
    assert not any(p.is_meta for p in model.parameters())
    grads = [[p.requires_grad for p in m.parameters()] for m in (model, source)]
    assert grads[0] == grads[1]
    if kind == "tied":
        assert model.blocks[0]["a"][0].weight is model.blocks[0]["a"][1].weight


def test_an_optimizer_that_would_be_left_with_meta_parameters_is_refused(tmp_path):
    source = nn.Linear(4, 4)
    checkpoint.save(tmp_path, optimizer=LUMA(source.named_parameters()), model=source)
    model = nn.Linear(4, 4, device="meta")
    optimizer = LUMA(model.named_parameters())
    with pytest.raises(ConfigurationError, match=r"'weight' is on the meta device.*first"):
        checkpoint.load(tmp_path, optimizer=optimizer, model=model)
    assert model.weight.is_meta


def test_lazy_modules_get_their_shapes(tmp_path):
    source = nn.Linear(5, 4)
    saved(tmp_path, source)
    model = nn.LazyLinear(4)
    checkpoint.load(tmp_path, model=model)
    assert torch.equal(model.weight, source.weight)


def test_what_a_model_shows_and_does_not_load_is_refused_before_anything_changes(tmp_path):
    class Shows(nn.Linear):
        def get_extra_state(self):
            return torch.ones(2)

    source, model = Shows(4, 4), Shows(4, 4)
    saved(tmp_path, source)
    before = model.weight.clone()
    with pytest.raises(StateMismatchError, match=r"_extra_state.*set_extra_state"):
        checkpoint.load(tmp_path, model=model)
    assert torch.equal(model.weight, before)


def test_a_module_that_does_not_take_its_part_says_so(tmp_path):
    saved(tmp_path, Whole("metric"))
    model = Whole("metric")
    model.blocks[0]["a"].more = nn.Linear(2, 2)
    before = model.first.weight.clone()
    with pytest.raises(StateMismatchError, match=r"blocks\.0\.a\.more\.weight"):
        checkpoint.load(tmp_path, model=model)
    assert torch.equal(model.first.weight, before)


def test_an_expanded_buffer_is_refused_before_anything_changes(tmp_path):
    model = nn.Linear(4, 4)
    model.register_buffer("b", torch.ones(1).expand(5))
    saved(tmp_path, model)
    with pytest.raises(StateMismatchError, match="'b' shows the same memory"):
        checkpoint.load(tmp_path, model=model)


def test_weights_of_plain_modules_are_in_memory_one_at_a_time(tmp_path, monkeypatch):
    source = Whole("extra state")
    saved(tmp_path, source)
    alive, most = [], []

    def read(self, entry, **options):
        tensor = original(self, entry, **options)
        alive.append(torch._C._WeakTensorRef(tensor))
        most.append(sum(not ref.expired() for ref in alive))
        return tensor

    original = Checkpoint.read_tensor
    monkeypatch.setattr(Checkpoint, "read_tensor", read)
    checkpoint.load(tmp_path, model=Whole("extra state"))
    assert max(most) == 1


def test_a_part_is_loaded_into_a_model_on_meta(tmp_path):
    saved = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    checkpoint.save(tmp_path / "c", optimizer=LUMA(saved.named_parameters()), model=saved)
    with torch.device("meta"):
        own = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6))
    loaded = checkpoint.load(tmp_path / "c", model=own, strict=False)
    assert loaded.model.new == loaded.model.left_out == ("1.weight", "1.bias")
    assert torch.equal(own[0].weight, saved[0].weight)
    assert {param.device.type for param in own[1].parameters()} == {"meta"}


@pytest.mark.parametrize("kind", [Scaled, Noted, Hooked])
def test_a_part_is_loaded_into_modules_with_state_of_their_own(tmp_path, kind):
    def built(out, **more):
        return nn.ModuleDict({"a": kind(), "head": nn.Linear(4, out), **more})

    saved, own = built(3), built(5, new=kind())
    if kind is not Hooked:
        saved["a"].amax = torch.full((3,), 5.0)
    checkpoint.save(tmp_path / "c", optimizer=LUMA(saved.named_parameters()), model=saved)
    optimizer = LUMA(own.named_parameters())
    with pytest.raises(StateMismatchError):
        checkpoint.load(tmp_path / "c", optimizer=optimizer, model=own)
    loaded = checkpoint.load(tmp_path / "c", optimizer=optimizer, model=own, strict=False)
    assert set(loaded.model.left_out) == {"head.weight", "head.bias"}
    assert {name.partition(".")[0] for name in loaded.model.new} == {"head", "new"}
    assert all(map(torch.equal, own["a"].parameters(), saved["a"].parameters()))
    if kind is not Hooked:
        assert torch.equal(own["a"].amax, saved["a"].amax)
