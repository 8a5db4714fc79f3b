"""Rows of single tensors are read without the rest of their shard."""

import pytest
import torch

from luma_core import checkpoint
from luma_core.checkpoint.format.compression import CHUNK_BYTES
from luma_core.errors import ConfigurationError, CorruptCheckpointError
from luma_core.optim import LUMA, AdamMini

SHAPES = {"matrix": (300, 200), "narrow": (500, 7), "vector": (1000,), "cube": (9, 11, 13)}
ROWS = [
    slice(None),
    slice(0, 1),
    slice(3, 7),
    slice(-2, None),
    slice(5, 5),
    slice(7, 3),
    slice(2, 10**6),
]


def _optimizer(**options):
    torch.manual_seed(0)
    params = [(name, torch.nn.Parameter(torch.randn(shape))) for name, shape in SHAPES.items()]
    optimizer = LUMA(params, seed=1, **{"min_compress_elements": 1, **options})
    for _ in range(2):
        for _, param in params:
            param.grad = torch.randn_like(param)
        optimizer.step()
    return optimizer


@pytest.fixture(params=[{}, {"block_size": None}, {"min_compress_elements": 10**9}])
def opened(tmp_path, request):
    checkpoint.save(tmp_path, optimizer=_optimizer(**request.param))
    return checkpoint.open(tmp_path)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("moment", ["exp_avg", "exp_avg_sq"])
def test_rows_are_those_of_the_whole_moment(opened, name, moment):
    state = opened.parameter_state(name)
    whole = state.decode(moment)
    assert torch.equal(opened.read(name, moment), whole)
    for rows in ROWS:
        assert torch.equal(opened.read(name, moment, rows=rows), whole[rows])


@pytest.mark.parametrize("name", SHAPES)
def test_stored_fields_can_be_read_as_they_are(opened, name):
    for key, whole in opened.parameter_state(name).fields.items():
        moment, _, field = key.partition(".")
        assert torch.equal(opened.read(name, moment, field=field), whole)
        if whole.dim():
            for rows in ROWS:
                assert torch.equal(opened.read(name, moment, field=field, rows=rows), whole[rows])


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_only_the_chunks_of_the_rows_are_read(tmp_path, monkeypatch, compression):
    param = torch.nn.Parameter(torch.zeros(4000, 8192))
    optimizer = LUMA([("p", param)], seed=1)
    param.grad = torch.randn_like(param)
    optimizer.step()
    checkpoint.save(tmp_path, optimizer=optimizer, compression=compression)
    opened = checkpoint.open(tmp_path)
    shard_bytes = opened.manifest.summary.stored_bytes
    opened.read("p", "exp_avg", rows=slice(0, 1))
    asked = []
    read_range = type(opened.store).read_range

    def watched(self, name, start, stop):
        asked.append(stop - start)
        return read_range(self, name, start, stop)

    monkeypatch.setattr(type(opened.store), "read_range", watched)
    got = opened.read("p", "exp_avg", rows=slice(1000, 1010))
    assert torch.equal(got, optimizer.parameter_state("p").decode("exp_avg")[1000:1010])
    assert sum(asked) <= 2 * CHUNK_BYTES < shard_bytes // 10


def test_what_cannot_be_read(opened):
    for rows in (slice(0, 9, 2), slice(None, None, -1)):
        with pytest.raises(ConfigurationError, match="step of 1"):
            opened.read("matrix", "exp_avg", rows=rows)
    for arguments in (("none", "exp_avg"), ("matrix", "none")):
        with pytest.raises(KeyError):
            opened.read(*arguments)
    with pytest.raises(KeyError):
        opened.read("matrix", "exp_avg", field="none")


def test_a_damaged_chunk_is_found(tmp_path):
    checkpoint.save(tmp_path, optimizer=_optimizer())
    opened = checkpoint.open(tmp_path)
    shard = tmp_path / "optimizer-00001-of-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CorruptCheckpointError, match="CRC-32"):
        opened.read("cube", "exp_avg_sq", field="exponent", rows=slice(0, 1))


def test_a_codec_of_one_shape_is_decoded_whole(tmp_path):
    torch.manual_seed(0)
    params = [("bias", torch.nn.Parameter(torch.randn(40)))]
    optimizer = AdamMini(params, seed=1)
    params[0][1].grad = torch.randn(40)
    optimizer.step()
    checkpoint.save(tmp_path, optimizer=optimizer)
    opened = checkpoint.open(tmp_path)
    whole = opened.parameter_state("bias").decode("exp_avg_sq")
    assert torch.equal(opened.read("bias", "exp_avg_sq", rows=slice(3, 9)), whole[3:9])
