"""State without names gets them from the model's own weights, or an error, never wrong ones."""

import json
import logging
import random

import pytest
import torch
from torch import nn

from luma_core import convert
from luma_core.convert.alignment import align
from luma_core.errors import ConversionError


class Tied(nn.Module):
    """As GPT-2's: one tensor is both the embedding and the head."""

    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(7, 4)
        self.ln = nn.LayerNorm(4)
        self.lm_head = nn.Linear(4, 7, bias=False)
        self.wte.weight = self.lm_head.weight


class Masked(nn.Module):
    """Buffers of whole numbers and of floating point between the parameters."""

    def __init__(self):
        super().__init__()
        self.register_buffer("index", torch.arange(4))
        self.first = nn.Linear(4, 4)
        self.register_buffer("inv_freq", torch.ones(4))
        self.second = nn.Linear(4, 4)


def blocks():
    layers = (nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4), nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4))
    return nn.Sequential(*layers)


MODELS = {
    "tied": Tied,
    "buffers": Masked,
    "batch norm": blocks,
    "batch norm without parameters": lambda: nn.Sequential(
        nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 4)
    ),
    "spectral norm": lambda: nn.Sequential(
        torch.nn.utils.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 4)
    ),
    "spectral parametrization": lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 4)
    ),
    "weight norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))),
}


def whole(model):
    return [list(model.parameters())]


def by_dimension(model):
    params = list(model.parameters())
    return [[p for p in params if p.dim() > 1], [p for p in params if p.dim() <= 1]]


def save(folder, model, groups, *, unused=(), wrap="{}"):
    """Save state whose first moments are told apart by value; return the true names."""
    optimizer = torch.optim.AdamW([{"params": group} for group in groups if group])
    true_names = {id(p): name for name, p in model.named_parameters()}
    for number, (name, param) in enumerate(model.named_parameters(), start=1):
        param.grad = None if name in unused else torch.full_like(param, number)
    optimizer.step()
    torch.save(optimizer.state_dict(), folder / "state.pt")
    weights = model.state_dict()
    torch.save(
        {"model": {(wrap or "{}").format(k): x for k, x in weights.items()}}, folder / "m.pt"
    )
    return [true_names[id(p)] for group in groups for p in group]


def opened(folder, model="m.pt"):
    return convert.open_source(folder / "state.pt", model=folder / model)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("group", [whole, by_dimension])
@pytest.mark.parametrize("wrap", ["{}", "_orig_mod.{}", "module._orig_mod.{}"])
def test_a_models_own_weights_name_its_state(tmp_path, kind, group, wrap):
    model = MODELS[kind]()
    names = save(tmp_path, model, group(model), wrap=wrap)
    source = opened(tmp_path)
    assert [info.name for info in source.parameters()] == names
    order = [name for name, _ in model.named_parameters()]
    for name in names:
        # After one step the first moment is a tenth of the gradient.
        value = source.read(name).exp_avg.flatten()[0]
        assert float(value) == pytest.approx(0.1 * (order.index(name) + 1))


def test_tied_weights_that_became_copies_are_told_by_order(tmp_path):
    model = Tied()
    names = save(tmp_path, model, whole(model))
    weights = {name: x.clone() for name, x in model.state_dict().items()}
    torch.save(weights, tmp_path / "m.pt")
    assert [info.name for info in opened(tmp_path).parameters()] == names


def test_a_parameter_that_never_had_a_gradient_takes_its_shape_from_the_model(tmp_path):
    model = nn.ModuleDict({"used": nn.Linear(4, 4), "unused": nn.Linear(4, 2)})
    unused = ["unused.weight", "unused.bias"]
    names = save(tmp_path, model, whole(model), unused=unused)
    source = opened(tmp_path)
    infos = {info.name: info for info in source.parameters()}
    assert list(infos) == names
    assert [infos[name].shape for name in unused] == [(2, 4), (2,)]
    assert [info.has_state for info in infos.values()] == [True, True, False, False]
    convert.convert(
        tmp_path / "state.pt", tmp_path / "c", to="luma", model=tmp_path / "m.pt", codec="fp32"
    )
    back = convert.convert(tmp_path / "c", tmp_path / "b.pt", to="adamw")
    again = torch.load(tmp_path / "b.pt", weights_only=True)
    assert (back.parameters, sorted(again["state"])) == (4, [0, 1])
    optimizer = torch.optim.AdamW(model.named_parameters())
    optimizer.load_state_dict(again)


@pytest.mark.parametrize("wrap", ["{}", "_orig_mod.{}", "module.{}", "module.module.{}"])
def test_names_in_the_state_find_shapes_in_the_model(tmp_path, wrap):
    model = nn.ModuleDict({"used": nn.Linear(4, 4), "unused": nn.Linear(4, 2)})
    optimizer = torch.optim.AdamW((wrap.format(n), p) for n, p in model.named_parameters())
    for param in model["used"].parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    with pytest.raises(ConversionError, match="has no state, so its shape is not known") as raised:
        convert.open_source(tmp_path / "state.pt")
    assert "--model" in raised.value.hint
    torch.save(model.state_dict(), tmp_path / "m.pt")
    last = opened(tmp_path).parameters()[-1]
    assert (last.name, last.shape, last.has_state) == (wrap.format("unused.bias"), (2,), False)


def frozen(*names):
    return lambda model: [[p for n, p in model.named_parameters() if n not in names]]


@pytest.mark.parametrize("keep", ["0.weight", "3.bias"])
def test_frozen_parameters_are_passed_over_where_order_tells(tmp_path, keep):
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(4, 3))
    others = [name for name, _ in model.named_parameters() if name != keep]
    names = save(tmp_path, model, frozen(*others)(model))
    assert names == [keep]
    assert [info.name for info in opened(tmp_path).parameters()] == [keep]


@pytest.mark.parametrize(
    ("model", "groups"),
    [
        # Either layer is the one that is trained.
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), frozen("0.weight", "0.bias")),
        # One of a norm's two parameters, which have the shape of its buffers as well.
        (lambda: nn.BatchNorm1d(4), frozen("weight")),
        # Two groups could be the other way round.
        (
            lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)),
            lambda model: [list(layer.parameters()) for layer in reversed(model)],
        ),
        # Not in the model's order.
        (
            lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)),
            lambda model: [
                [*model[2].parameters(), *model[1].parameters(), *model[0].parameters()]
            ],
        ),
    ],
    ids=["shifted", "buffers", "groups", "order"],
)
def test_what_fits_more_than_one_way_is_refused_unless_names_are_listed(tmp_path, model, groups):
    model = model()
    names = save(tmp_path, model, groups(model))
    with pytest.raises(ConversionError, match="names cannot be told") as raised:
        opened(tmp_path)
    assert "JSON file" in raised.value.hint
    (tmp_path / "names.json").write_text(json.dumps(names))
    assert [info.name for info in opened(tmp_path, "names.json").parameters()] == names
    (tmp_path / "names.json").write_text(json.dumps(names[:-1] + names[:1] * 2))
    with pytest.raises(ConversionError, match=r"lists \d different names"):
        opened(tmp_path, "names.json")


def test_distinct_shapes_need_no_order(tmp_path):
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    names = save(tmp_path, model, [[*model[1].parameters(), *model[0].parameters()]])
    assert [info.name for info in opened(tmp_path).parameters()] == names


def test_it_is_said_when_names_of_buffers_decide(tmp_path, caplog):
    model = nn.BatchNorm1d(4)
    save(tmp_path, model, whole(model))
    with caplog.at_level(logging.INFO):
        opened(tmp_path)
    assert "'running_mean', 'running_var' are taken for buffers by name" in caplog.text


def test_safetensors_of_a_model_with_buffers_name_its_state(tmp_path):
    from safetensors.torch import save_file

    model = nn.Sequential(nn.Conv1d(3, 4, 1, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 2))
    names = save(tmp_path, model, whole(model))
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    with pytest.raises(ConversionError, match=r"'1\.(bias|weight)', '1\.(bias|weight)' have one"):
        opened(tmp_path, "m.safetensors")
    model = nn.Sequential(nn.Conv1d(3, 4, 1, bias=False), nn.BatchNorm1d(4, affine=False))
    names = save(tmp_path, model, whole(model))
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    assert [info.name for info in opened(tmp_path, "m.safetensors").parameters()] == names


def test_certain_names_are_always_true_ones():
    chance = random.Random(0)
    certain = 0
    for _ in range(1500):
        shapes = {f"n{i}": (chance.randint(1, 3),) for i in range(chance.randint(1, 8))}
        groups, truth = ([], [], []), ([], [], [])
        for name, shape in shapes.items():
            if chance.random() < 0.8:
                index = chance.randrange(3)
                groups[index].append(shape if chance.random() < 0.9 else None)
                truth[index].append(name)
        found = align(shapes, groups)
        assert found.misfit is None
        flat = [name for names in truth for name in names]
        assert all(flat[place] == name for place, name in found.names.items())
        assert bool(found.choices) == (len(found.names) < len(flat))
        certain += not found.choices
    assert certain > 300
