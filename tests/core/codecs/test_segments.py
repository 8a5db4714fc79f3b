"""Segments of a partition: numbered, summed and spread as a plain loop over elements would."""

from __future__ import annotations

import pytest
import torch

from luma_core.codecs import BlockGrid, Partition, SegmentMean, codec_from_dict, segments
from luma_core.errors import ConfigurationError

PARTITIONS = [
    Partition.rows((12, 5)),
    Partition.rows((12, 5), size=3),
    Partition.columns((30, 9)),
    Partition.columns((30, 9), size=3),
    Partition.vectors((4, 3, 7)),
    Partition.elements((3, 7)),
    Partition.whole((3, 7)),
    Partition.whole(()),
    Partition.rows((0, 4)),
    Partition.rows((4, 0)),
    Partition(2, 3, 10, 4, ((2, 3), (1, 2), (2, 1))),
    Partition(3, 1, 11, 5, ((2, 4), (3, 1))),
    Partition(3, 5, 4, 1, ((4, 1),)),
]


def segment_of_element(partition: Partition) -> torch.Tensor:
    along = [
        index
        for index, size in enumerate(size for count, size in partition.runs for _ in range(count))
        for _ in range(size)
    ]
    found = [
        outer * partition.segments_per_outer + along[position]
        for outer in range(partition.outer)
        for _ in range(partition.reduce)
        for position in range(partition.length)
        for _ in range(partition.inner)
    ]
    return torch.tensor(found, dtype=torch.int64)


@pytest.fixture(params=[2, 7, 64, 1 << 18])
def tile_elements(request, monkeypatch) -> int:
    monkeypatch.setattr(segments, "TILE_ELEMENTS", request.param)
    return request.param


@pytest.mark.parametrize("partition", PARTITIONS, ids=str)
def test_sums_and_maxima_are_those_of_each_segment(partition, tile_elements) -> None:
    x = torch.randn(partition.numel, generator=torch.Generator().manual_seed(0))
    owner = segment_of_element(partition)
    want = torch.zeros(partition.segments, dtype=torch.float64)
    torch.testing.assert_close(partition.sums(x), want.index_add(0, owner, x.square().double()))
    largest = want.scatter_reduce(0, owner, x.abs().double(), "amax")
    assert torch.equal(partition.largest(x), largest)
    sizes = torch.bincount(owner, minlength=partition.segments).double()
    assert torch.equal(partition.segment_elements(), sizes)


@pytest.mark.parametrize("partition", PARTITIONS, ids=str)
def test_every_range_gets_the_values_of_its_elements_segments(partition, tile_elements) -> None:
    values = torch.arange(float(partition.segments))
    owner = segment_of_element(partition)
    for start in range(0, partition.numel + 1, 3):
        for stop in range(start, partition.numel + 1, 5):
            assert torch.equal(partition.spread(values, start, stop), values[owner[start:stop]])


def test_sums_of_any_strides_are_those_of_contiguous_tensors() -> None:
    x = torch.randn(8, 6, 5, 4).to(memory_format=torch.channels_last)
    for partition in (Partition.rows(tuple(x.shape)), Partition.columns(tuple(x.shape))):
        assert torch.equal(partition.sums(x), partition.sums(x.contiguous()))


@pytest.mark.parametrize("partition", PARTITIONS, ids=str)
def test_segment_means_restore_what_they_decoded_to(partition) -> None:
    codec = SegmentMean(partition=partition)
    shape = (partition.numel,)
    value = torch.rand(partition.segments)
    decoded = codec.decode_tensor({"value": value}, shape)
    if 0 not in partition.segment_elements():
        assert torch.equal(codec.encode_tensor(decoded)["value"], value)
    assert decoded.shape == shape
    assert codec_from_dict(codec.to_dict()) == codec


def test_tiles_read_what_the_whole_tensor_decodes_to() -> None:
    shape = (6, 50)
    codec = SegmentMean(partition=Partition(2, 1, 3, 50, ((1, 2), (1, 1))))
    fields = {"value": torch.arange(4.0)}
    whole = codec.decode_tensor(fields, shape)
    out = torch.full(shape, torch.nan)
    for block_size in (16, None):
        for tile in BlockGrid.of(shape, block_size).tiles(120):
            tile.write(out, codec.decode(codec.read_tile(fields, tile)))
        assert torch.equal(out, whole), block_size


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "partition=None must be an object with inner, length, outer"),
        ({"outer": 1}, "must be an object with"),
        ({"outer": 1, "reduce": 1, "length": 4, "inner": 1, "runs": [[1, 3]]}, "cover 3 positions"),
        ({"outer": 1, "reduce": 1, "length": 0, "inner": 1, "runs": [[1, 0]]}, "at least 1"),
        ({"outer": -1, "reduce": 1, "length": 1, "inner": 1, "runs": [[1, 1]]}, "0 or more"),
        ({"outer": 1, "reduce": 1, "length": 1, "inner": True, "runs": [[1, 1]]}, "0 or more"),
        ({"outer": 1, "reduce": 1, "length": 1, "inner": 1, "runs": [[1]]}, "0 or more"),
        ({"outer": 1, "reduce": 1, "length": 1, "inner": 1, "runs": 3}, "runs"),
    ],
)
def test_bad_partitions_are_clear_errors(config, message) -> None:
    with pytest.raises(ConfigurationError, match=message):
        codec_from_dict({"name": "segment_mean", "partition": config})


def test_a_partition_of_another_size_is_refused() -> None:
    codec = SegmentMean(partition=Partition.rows((4, 5)))
    with pytest.raises(ConfigurationError, match=r"is of 20 elements; a tensor of shape \[4, 6\]"):
        codec.layout((4, 6))
