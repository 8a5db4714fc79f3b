"""docs/checkpoint-format.md is enough to read a checkpoint: its program decodes what was saved."""

import ast
import re
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from luma_core import checkpoint
from luma_core.checkpoint import Manifest, Summary
from luma_core.checkpoint.format import Chunk, FileEntry, ParameterEntry, TensorEntry, compression
from luma_core.checkpoint.write import save_run as writer
from luma_core.codecs import BF16, CoStateM, LogV, Luma16M, Luma16V, RootV, TableM, codec_names
from luma_core.optim import LUMA, luma_codecs

DOCUMENT = (Path(__file__).parents[4] / "docs" / "checkpoint-format.md").read_text()
PROGRAM = re.search(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)[1]


@pytest.fixture(scope="module")
def reader():
    names = {}
    exec(compile(PROGRAM, "checkpoint-format.md", "exec"), names)
    return names


def trained(codecs, **options):
    torch.manual_seed(0)
    shapes = {
        "matrix": (48, 130),
        "thin": (300, 5),
        "conv": (8, 4, 3, 3),
        "bias": (9,),
        "scalar": (),
        "empty": (0, 40),
    }
    params = {name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}
    group = {"params": list(params.items()), "codecs": codecs}
    optimizer = LUMA([group], seed=1, min_compress_elements=9, **options)
    for _ in range(3):
        for param in params.values():
            param.grad = torch.randn_like(param) * torch.exp(3 * torch.randn_like(param))
        optimizer.step()
    return optimizer


def codecs_of(m, v):
    return {"exp_avg": m.to_dict(), "exp_avg_sq": v.to_dict()}


@pytest.mark.parametrize(
    "codecs",
    [
        luma_codecs(),
        luma_codecs(block_size=16),
        luma_codecs(block_size=None),
        codecs_of(Luma16M(octaves=13), Luma16V(octaves=13)),
        codecs_of(Luma16M(octaves=61), Luma16V(octaves=61)),
        codecs_of(BF16(), BF16()),
    ],
)
@pytest.mark.parametrize("kind", ["zstd", "none"])
def test_the_documented_program_decodes_every_value(tmp_path, monkeypatch, reader, codecs, kind):
    monkeypatch.setattr(writer, "CHUNK_BYTES", 4 << 10)
    optimizer = trained(codecs)
    manifest = checkpoint.save(tmp_path, optimizer=optimizer, compression=kind)
    assert max(len(entry.chunks) for entry in manifest.tensors) > 3
    if kind == "zstd":
        assert any(not chunk.raw for entry in manifest.tensors for chunk in entry.chunks)
    found = reader["read_moments"](tmp_path)
    assert found.keys() == set(optimizer.parameter_names())
    for state in optimizer.parameter_states():
        assert found[state.name].keys() == state.codecs.keys()
        for moment in state.codecs:
            want = state.decode(moment).numpy()
            got = found[state.name][moment]
            assert got.dtype == np.float32
            assert np.array_equal(got.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("block_size", [16, 128])
@pytest.mark.parametrize(
    ("m", "v"),
    [
        (TableM, RootV),
        (TableM, LogV),
        (lambda **options: TableM(bits=5, **options), lambda **options: LogV(bits=5, **options)),
        (lambda **options: TableM(bits=8, **options), lambda **options: LogV(bits=8, **options)),
        (CoStateM, lambda **options: RootV(bits=6, floor=0.1, **options)),
        (lambda **options: CoStateM(feedback=0.9, **options), LogV),
    ],
)
def test_the_documented_program_decodes_packed_codes(tmp_path, reader, m, v, block_size):
    optimizer = trained(codecs_of(m(block_size=block_size), v(block_size=block_size)))
    checkpoint.save(tmp_path, optimizer=optimizer)
    found = reader["read_moments"](tmp_path)
    for state in optimizer.parameter_states():
        for moment in state.codecs:
            want, got = state.decode(moment).numpy(), found[state.name][moment]
            assert got.dtype == np.float32
            assert np.array_equal(got, want)


def test_blocks_that_are_not_finite_are_marked_as_documented(tmp_path, reader):
    param = nn.Parameter(torch.zeros(2, 256))
    optimizer = LUMA([("p", param)], nonfinite="propagate", seed=0)
    param.grad = torch.ones_like(param)
    param.grad[1, 3] = torch.inf
    optimizer.step()
    checkpoint.save(tmp_path, optimizer=optimizer)
    values = reader["read_moments"](tmp_path)["p"]
    for moment in values.values():
        finite = np.isfinite(moment)
        assert not finite[1, :128].any()
        assert finite[0].all()
        assert finite[1, 128:].all()


def test_the_program_needs_nothing_of_ours():
    imports = [
        n for n in ast.walk(ast.parse(PROGRAM)) if isinstance(n, ast.Import | ast.ImportFrom)
    ]
    names = {a.name for n in imports if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in imports if isinstance(n, ast.ImportFrom)}
    assert names - set(sys.stdlib_module_names) == {"numpy", "zstandard"}


@pytest.mark.parametrize(
    "kind", [Manifest, ParameterEntry, TensorEntry, FileEntry, Summary], ids=lambda k: k.__name__
)
def test_every_field_of_the_manifest_is_described(kind):
    missing = [field.name for field in fields(kind) if f"`{field.name}`" not in DOCUMENT]
    assert missing == []


def test_chunks_and_codecs_are_described():
    assert f"`[{', '.join(Chunk._fields)}]`" in DOCUMENT
    assert [name for name in codec_names() if f"| `{name}` |" not in DOCUMENT] == []
    assert f"up to {compression.MAX_CHUNK_BYTES >> 20} MiB" in DOCUMENT
