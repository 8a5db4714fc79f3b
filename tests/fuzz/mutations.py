"""What is done to valid input: bytes change, nodes of JSON or of a saved object are replaced."""

import random
import warnings
from collections.abc import Iterator
from typing import Any

import torch

Path = tuple[Any, ...]

INTERESTING_BYTES = (0x00, 0x01, 0x7F, 0x80, 0xFF, 0x22, 0x2E, 0x7B)

ODD_JSON: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    2,
    127,
    1 << 31,
    (1 << 63) - 1,
    1 << 63,
    1 << 200,
    0.5,
    1e308,
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "\0",
    "é" * 70,
    "x" * 300,
    [],
    {},
    [[]],
    [0],
    {"": {}},
    [1 << 40, 1 << 40],
    [[1, 0, False]],
    [0.9],
    1 << 30,
    10**30,
    10**400,
    [1 << 62, 0],
    [0, 1 << 70],
    {"$tensor": {}},
    {"$tensor": 3},
    {"$tuple": 3},
    {"$dict": [[[], 1]]},
    {"$unknown": 1},
    {"$numpy": ["AA==", "O"]},
)


def changed_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return ``data`` with a few bytes changed, cut, doubled or moved."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(out) + 1)
        length = min(rng.choice((1, 1, 2, 4, 8, 64)), len(out) - place)
        kind = rng.randrange(6)
        if kind == 0:
            del out[place:]
        elif kind == 1:
            del out[place : place + length]
        elif kind == 2:
            out[place:place] = out[place : place + length] or b"\xff"
        elif kind == 3:
            out[place : place + length] = bytes(rng.choices(INTERESTING_BYTES, k=length))
        elif kind == 4:
            other = rng.randrange(len(out) + 1)
            out[place : place + length] = out[other : other + length]
        elif place < len(out):
            out[place] ^= 1 << rng.randrange(8)
    return bytes(out)


def paths(value: Any, here: Path = ()) -> Iterator[Path]:
    """Yield the place of every node below ``value``."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in items:
        yield (*here, key)
        if isinstance(child, dict | list):
            yield from paths(child, (*here, key))


def replaced(value: Any, path: Path, new: Any) -> Any:
    """Return a copy of ``value`` with the node at ``path`` replaced."""
    if not path:
        return new
    out = dict(value) if isinstance(value, dict) else list(value)
    out[path[0]] = replaced(value[path[0]], path[1:], new)
    return out


def without(value: Any, path: Path) -> Any:
    """Return a copy of ``value`` without the node at ``path``."""
    out = dict(value) if isinstance(value, dict) else list(value)
    if len(path) == 1:
        del out[path[0]]
    else:
        out[path[0]] = without(value[path[0]], path[1:])
    return out


def node(value: Any, path: Path) -> Any:
    """Return the node at ``path``."""
    for key in path:
        value = value[key]
    return value


def changed_json(value: Any, rng: random.Random) -> Any:
    """Return ``value`` with a few nodes replaced, swapped, removed or doubled."""
    for _ in range(rng.randint(1, 3)):
        places = list(paths(value)) if isinstance(value, dict | list) else []
        if not places:
            return rng.choice(ODD_JSON)
        path = rng.choice(places)
        old = node(value, path)
        kind = rng.randrange(6)
        if kind == 0:
            value = without(value, path)
        elif kind == 1:
            value = replaced(value, path, node(value, rng.choice(places)))
        elif kind == 2 and isinstance(old, list):
            value = replaced(value, path, old + old[: rng.randint(1, 2)])
        elif kind == 3 and isinstance(old, int):
            value = replaced(value, path, old + rng.choice((-1, 1, 128)))
        elif kind == 4 and isinstance(old, dict):
            value = replaced(value, path, {**old, "other": rng.choice(ODD_JSON)})
        else:
            value = replaced(value, path, rng.choice(ODD_JSON))
    return value


def odd_objects() -> list[Any]:
    """Return values that ``torch.load(weights_only=True)`` gives back, and no state holds."""
    deep: list[Any] = []
    for _ in range(400):
        deep = [deep]
    with warnings.catch_warnings():
        # That kinds of tensors are old or new is not the point.
        warnings.simplefilter("ignore")
        return _odd_values(deep)


def _odd_values(deep: list[Any]) -> list[Any]:
    return [
        None,
        True,
        -1,
        0,
        1 << 70,
        float("nan"),
        float("inf"),
        -0.5,
        1j,
        "",
        "../x",
        "x" * 300,
        b"bytes",
        (),
        [],
        {},
        [[]],
        {1: {}},
        {"exp_avg": 3},
        ["a", "a"],
        [0, 0],
        [None],
        [[0]],
        deep,
        torch.tensor(float("nan")),
        torch.tensor(-3.0),
        torch.tensor(1 + 2j),
        torch.tensor(True),
        torch.tensor(1 << 62),
        torch.zeros(0),
        torch.zeros(3, 0),
        torch.zeros(2, 2, dtype=torch.int8),
        torch.zeros(3, 5, dtype=torch.complex64),
        torch.full((3, 5), float("inf")),
        torch.full((3, 5), -1.0),
        torch.zeros(3, 5, dtype=torch.float64) + 1e300,
        torch.zeros(3, 5).to_sparse(),
        torch.zeros(3, 5).to_sparse_csr(),
        torch.empty(3, 5, device="meta"),
        torch.empty((), device="meta"),
        torch.zeros(1).expand(1 << 40),
        torch.zeros(1, 1).expand(1 << 30, 1 << 30),
        torch.zeros(1, dtype=torch.uint8).expand(1 << 40),
        torch.quantize_per_tensor(torch.zeros(3, 5), 0.1, 0, torch.qint8),
        torch.zeros(3, 5).t(),
        torch.Size([3, 5]),
        torch.float16,
    ]
