"""What callers put into ``extra=`` and into groups comes back as it was, or is refused."""

import dataclasses
import datetime
import enum
import io
import json
import math
import random
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR
from torch.testing._internal.two_tensor import TwoTensor

from luma_core import LUMA, checkpoint
from luma_core.checkpoint.format.extra import flatten_extra, restore_extra
from luma_core.errors import ConfigurationError, CorruptCheckpointError, UnsupportedVersionError


def same(a, b):
    """Whether two values are equal in type, order and every bit that counts."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return repr(a) == repr(b)
    if isinstance(a, io.BytesIO):
        return a.getvalue() == b.getvalue()
    if isinstance(a, dict):
        kept = getattr(a, "default_factory", None) is getattr(b, "default_factory", None)
        keys = list(a) == list(b) if isinstance(a, OrderedDict) else a.keys() == b.keys()
        return kept and keys and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple | deque):
        bound = getattr(a, "maxlen", None) == getattr(b, "maxlen", None)
        return bound and len(a) == len(b) and all(map(same, a, b))
    return a == b


def back(value):
    """Return what comes of a value through JSON and tensors by name."""
    tree, tensors = flatten_extra(value)
    return restore_extra(json.loads(json.dumps(tree, allow_nan=False)), tensors.__getitem__)


def read_only():
    array = np.arange(4)
    array.flags.writeable = False
    return array


VALUES = [
    *(math.nan, math.inf, -math.inf, -0.0, 1 + 2j, None, True, 2**64, -(2**200), 3**4000),
    *(
        "",
        "\ud800",
        b"",
        b"\0\xff",
        bytearray(b"a"),
        io.BytesIO(b"abc"),
        Path("a/b"),
        range(3, 9, 2),
    ),
    *((), (1, [2, (3.0,)]), {1, 2}, set(), frozenset([("a", 1)]), deque([1], maxlen=3), deque()),
    *({1: 2}, {"1": 1, 1: 2, None: 3, (1, 2): 4, b"k": 5}, {"\ud800": 1}, {True: 1}),
    *({"$tuple": [1]}, {"$": {"$$": {"$tensor": "x"}}}, {"a/b": {"~": (1,)}}),
    *(OrderedDict(b=1, a=2), Counter("aab"), defaultdict(list, a=[1]), defaultdict(None)),
    *(
        np.float32(1),
        np.float64("nan"),
        np.int64(3),
        np.bool_(True),
        np.complex64(1j),
        np.str_("é"),
    ),
    *(np.datetime64("2020-01-01"), np.arange(6, dtype=">i4").reshape(2, 3).T, np.zeros((0, 3))),
    *(np.array(3.5), np.array(["a", "bb"]), np.float16([1.5]), np.arange(5)[::-1], read_only()),
    *(datetime.datetime(2020, 1, 2, 3, tzinfo=datetime.UTC), datetime.date(2020, 1, 2)),
    *(datetime.timedelta(1, 2, 3), torch.bfloat16, torch.device("cuda:1"), torch.Size([2, 3])),
    {"a": (torch.zeros(1), [np.ones(2)]), 2: torch.ones(3), "a/1": torch.ones(2)},
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_comes_back_in_type_and_value(value):
    assert same(back([value]), [value])


def test_states_of_random_generators_come_back(tmp_path):
    generators = [np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64]
    extra = {
        "python": random.getstate(),
        "legacy": np.random.get_state(),
        "numpy": [np.random.Generator(kind(7)).bit_generator.state for kind in generators],
        "torch": torch.get_rng_state(),
        "loss": math.nan,
    }
    optimizer = LUMA(nn.Linear(2, 2).parameters())
    checkpoint.save(tmp_path / "a", optimizer=optimizer, extra=extra)
    assert checkpoint.verify(tmp_path / "a").ok
    json.loads((tmp_path / "a/luma.json").read_text(), parse_constant=pytest.fail)
    loaded = checkpoint.load(tmp_path / "a").extra
    assert same(loaded, extra)
    assert same(checkpoint.open(tmp_path / "a").extra(), extra)
    random.setstate(loaded["python"])
    np.random.set_state(loaded["legacy"])


class Half:
    def __call__(self, _epoch):
        return 0.5


SCHEDULERS = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 2, 5]),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, Half()),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, Half()),
    "ConstantLR": lr_scheduler.ConstantLR,
    "LinearLR": lr_scheduler.LinearLR,
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lr_scheduler.PolynomialLR,
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=9),
    "ReduceLROnPlateau": lr_scheduler.ReduceLROnPlateau,
    "SWALR": lambda o: SWALR(o, 0.1),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o), lr_scheduler.MultiStepLR(o, [3])]
    ),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o), lr_scheduler.MultiStepLR(o, [3])], [4]
    ),
}


def test_every_scheduler_of_pytorch_is_tried():
    known = {name for name in lr_scheduler.__all__ if name not in ("LRScheduler",)}
    assert known | {"SWALR"} == set(SCHEDULERS)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_state_of_a_scheduler_comes_back(name):
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1, momentum=0.9)
    scheduler = SCHEDULERS[name](optimizer)
    for _ in range(4):
        optimizer.step()
        scheduler.step(*[1.0] * (name == "ReduceLROnPlateau"))
    state = scheduler.state_dict()
    found = back(state)
    assert same(found, state)
    scheduler.load_state_dict(found)


class Colour(enum.IntEnum):
    RED = 1


@dataclasses.dataclass
class Settings:
    lr: float = 0.1


class Bag(dict):
    pass


def looped():
    value = []
    value.append(value)
    return value


REFUSED = [
    (Colour.RED, "Colour.*[.]value"),
    (Settings(), "Settings.*asdict"),
    (namedtuple("Point", "x y")(1, 2), "Point.*_asdict"),
    (Bag(a=1), "Bag"),
    (object(), "object"),
    (len, "builtin_function"),
    (np.array([object()]), "dtype object.*tolist"),
    (np.longdouble(1), "longdouble"),
    (np.ma.array([1]), "MaskedArray"),
    (np.random.default_rng(0), r"Generator.*bit_generator\.state"),
    (random.Random(0), r"Random.*getstate"),
    (torch.Generator(), r"Generator.*get_state"),
    (torch.optim.SGD([torch.zeros(1)]), r"SGD.*state_dict"),
    (defaultdict(lambda: 1), "default_factory"),
    ({torch.ones(1): 1}, "Keys"),
    (looped(), "holds itself"),
    (TwoTensor(torch.ones(2), torch.ones(2)), "TwoTensor.*made of other tensors"),
]


@pytest.mark.parametrize(("value", "told"), REFUSED, ids=lambda value: type(value).__name__)
def test_what_cannot_be_kept_is_refused_by_place_type_and_remedy(value, told):
    with pytest.raises(ConfigurationError, match=rf"extra\['a'\]\[3\].*{told}"):
        flatten_extra({"a": [1, 2, 3, value]})


def test_what_is_nearly_too_deep_can_be_read_again(tmp_path):
    value = {1: (1,)}
    while True:
        try:
            flatten_extra({1: (value,)})
        except ConfigurationError:
            break
        value = {1: (value,)}
    checkpoint.save(tmp_path, optimizer=LUMA([nn.Parameter(torch.zeros(2))]), extra=value)
    assert same(checkpoint.load(tmp_path).extra, value)


@pytest.mark.parametrize(
    "form",
    [
        *({"$tuple": 3}, {"$dict": [[1]]}, {"$dict": [[1, 2], [1, 3]]}, {"$dict": [[[], 1]]}),
        *({"$set": [[1]]}, {"$float": "x"}, {"$int": 5}, {"$bytes": "é"}, {"$ndarray": [1, 2, 3]}),
        *({"$numpy": ["AA==", "O"]}, {"$numpy": ["AA==", "<f8"]}, {"$dtype": "load"}),
        *({"$device": "x:y"}, {"$defaultdict": [[], "eval"]}, {"$deque": [1, -1]}, {"$str": None}),
        *({"$tuple": [], "$set": []}, {"$date": "x"}, {"$complex": [1]}, {"$size": [-1.5]}),
    ],
    ids=lambda form: json.dumps(form)[:20],
)
def test_a_form_that_nobody_wrote_is_corrupt(form):
    with pytest.raises(CorruptCheckpointError, match=r"c/luma[.]json: extra"):
        restore_extra([form], lambda name: None, "c/luma.json: extra")


def test_a_kind_of_newer_software_is_told_as_such():
    with pytest.raises(UnsupportedVersionError, match=r"\$quaternion.*Upgrade"):
        restore_extra({"$quaternion": [1]}, lambda name: None)


def with_option(value):
    optimizer = LUMA(nn.Linear(8, 8).named_parameters(), seed=0)
    optimizer.param_groups[0]["mine"] = value
    return optimizer


@pytest.mark.parametrize(
    "value",
    [np.float32(1), {1: 2}, (1, 2), math.inf, None, "x", {"$a": [1]}, {1, 2}, 3, [0.5], b"x", {}],
    ids=repr,
)
def test_an_option_of_the_callers_own_comes_back(tmp_path, value):
    checkpoint.save(tmp_path, optimizer=with_option(value))
    fresh = with_option(None)
    checkpoint.load(tmp_path, optimizer=fresh)
    assert same(fresh.param_groups[0]["mine"], value)
    assert checkpoint.verify(tmp_path).ok
    checkpoint.save(tmp_path, optimizer=checkpoint.open(tmp_path), overwrite=True)
    assert same(checkpoint.open(tmp_path).group_options()[0]["mine"], value)


@pytest.mark.parametrize(
    "value", [torch.tensor([1.0, 2.0]), np.ones(2), object(), [Colour.RED], torch.tensor(1j)]
)
def test_an_option_that_cannot_be_kept_is_refused_by_group_and_name(tmp_path, value):
    optimizer = with_option(1)
    optimizer.add_param_group(
        {"params": [nn.Parameter(torch.zeros(2))], "mine": value, "param_names": ["w"]}
    )
    with pytest.raises(ConfigurationError, match=r"param_groups\[1\]\['mine'\]"):
        checkpoint.save(tmp_path, optimizer=optimizer)
    assert not list(tmp_path.iterdir())


def test_numbers_of_numpy_in_our_own_options_are_plain_in_the_manifest(tmp_path):
    optimizer = LUMA(nn.Linear(2, 2).parameters())
    optimizer.param_groups[0]["lr"] = np.float32(0.5)
    manifest = checkpoint.save(tmp_path, optimizer=optimizer)
    assert manifest.groups[0]["lr"] == 0.5
    assert manifest.groups[0]["betas"] == [0.9, 0.999]
