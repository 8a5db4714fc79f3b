"""What every codec must do, as tests: a new codec passes them by a small subclass.

Needs pytest. A subclass gives configurations of the codec and states the error that it promises::

    class TestMine(CodecConformance):
        codecs = (Mine(), Mine(block_size=40), Mine(block_size=None))
        relative_error = 2**-7
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from luma_core.codecs import Codec, base
from luma_core.errors import ConfigurationError
from luma_core.testing.values import (
    SHAPES,
    magnitudes,
    noise,
    poisoned_memory,
    positive_numbers,
)

ODD = ((12, 130), (12, 4, 33), (12, 9000))
UNBIASED_SHARES = (0.3, 0.47, 0.8, 0.97)


class CodecConformance:
    """The promises of a `Codec`.

    Attributes:
        codecs: the configurations to try: the default one, others of block size and options.
        relative_error: bound on the error of an element that is as large as its block's largest.
        sample_error: relative and absolute bound on the error of moments as training leaves them,
            of magnitudes around 1e-3; ``None`` for codecs that promise none.
        sizes: magnitudes of constant tensors that are kept within ``relative_error``.
        largest: magnitude of an element beside which others of its block need not be kept.
        restores: whether coding what was decoded restores every value.
        keeps_zeros: whether zeros beside other values decode to zeros.
        independent_blocks: whether a block's codes depend on nothing but the block.
    """

    codecs: ClassVar[Sequence[Codec]]
    relative_error: ClassVar[float]
    sample_error: ClassVar[tuple[float, float] | None] = None
    sizes: ClassVar[Sequence[float]] = (1e-38, 1e-30, 1e-3, 1.0, 1e30, 1e37)
    largest: ClassVar[float] = 1e30
    restores: ClassVar[bool] = True
    keeps_zeros: ClassVar[bool] = True
    independent_blocks: ClassVar[bool] = True

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each test for each configuration."""
        if "codec" in metafunc.fixturenames:
            ids = [f"{codec.name}-{index}" for index, codec in enumerate(self.codecs)]
            metafunc.parametrize("codec", self.codecs, ids=ids)

    @pytest.fixture(autouse=True)
    def _poisoned(self) -> Iterator[None]:
        with poisoned_memory():
            yield

    def of_shape(self, codec: Codec, shape: tuple[int, ...]) -> Codec:
        """Return the codec for a tensor of ``shape``, for those that belong to one tensor."""
        return codec

    def values(self, codec: Codec, shape: tuple[int, ...], spread: float = 1.0) -> Tensor:
        """Return a moment that the codec may store: squares for codecs of second moments."""
        x = magnitudes(shape, spread=spread)
        return x if codec.signed else x.square()

    def coded(self, codec: Codec, x: Tensor, draws: Tensor | None = None) -> Tensor:
        """Return what ``x`` decodes to."""
        codec = self.of_shape(codec, tuple(x.shape))
        return codec.decode_tensor(codec.encode_tensor(x, draws), tuple(x.shape))

    def test_every_shape_is_stored_as_its_layout_says(self, codec: Codec) -> None:
        for shape in SHAPES:
            own, x = self.of_shape(codec, shape), self.values(codec, shape)
            fields, layout = own.encode_tensor(x, noise(shape)), own.layout(shape)
            assert fields.keys() == layout.keys() == own.init(shape, "cpu").keys()
            for name, spec in layout.items():
                assert (fields[name].dtype, tuple(fields[name].shape)) == (spec.dtype, spec.shape)
                assert fields[name].nbytes == spec.nbytes
            decoded = own.decode_tensor(fields, shape)
            assert (decoded.dtype, decoded.shape) == (torch.float32, x.shape)
            assert torch.isfinite(decoded).all()
            if self.sample_error is not None:
                rtol, atol = self.sample_error
                torch.testing.assert_close(decoded, x, rtol=rtol, atol=atol)

    def test_fields_of_zeros_decode_to_zeros_and_zeros_to_zeros(self, codec: Codec) -> None:
        for shape in SHAPES:
            own, zeros = self.of_shape(codec, shape), torch.zeros(shape, device="cpu")
            assert torch.equal(own.decode_tensor(own.init(shape, "cpu"), shape), zeros)
            for x in (zeros, -zeros):
                assert torch.equal(self.coded(codec, x, noise(shape)), zeros)

    def test_coding_what_was_decoded_restores_every_value(self, codec: Codec) -> None:
        for shape in SHAPES if self.restores else ():
            decoded = self.coded(codec, self.values(codec, shape, 3.0), noise(shape))
            assert torch.equal(self.coded(codec, decoded), decoded), shape

    def test_the_code_of_minus_x_decodes_to_minus_that_of_x(self, codec: Codec) -> None:
        if codec.signed:
            x = self.values(codec, (7, 130))
            assert torch.equal(self.coded(codec, -x), -self.coded(codec, x))

    def test_constant_tensors_of_any_size_are_kept(self, codec: Codec) -> None:
        for size in self.sizes:
            x = torch.full((4, 200), size, device="cpu")
            for draws in (None, noise((4, 200))) if self.restores else (None,):
                decoded = self.coded(codec, x, draws)
                torch.testing.assert_close(decoded, x, rtol=self.relative_error, atol=2.0**-126)

    def test_zeros_stay_zeros_beside_others(self, codec: Codec) -> None:
        if self.keeps_zeros:
            x = self.values(codec, (8, 300), spread=10.0)
            x[:, ::2] = 0.0
            decoded = self.coded(
                codec, x, torch.full((8, 300), 65535, dtype=torch.int32, device="cpu")
            )
            assert not decoded[:, ::2].any()

    def test_second_moments_above_zero_stay_above_zero(self, codec: Codec) -> None:
        x = positive_numbers()
        for draw in (None, 0, 65535) if codec.positive else ():
            draws = (
                None if draw is None else torch.full(x.shape, draw, dtype=torch.int32, device="cpu")
            )
            assert bool((self.coded(codec, x, draws) > 0).all()), draw

    @pytest.mark.parametrize("value", [1.0, torch.nan, torch.inf])
    def test_a_huge_or_bad_element_costs_only_its_own_block(
        self, codec: Codec, value: float
    ) -> None:
        if not codec.tiled:
            return
        x = self.values(codec, (4, 400))
        before = self.coded(codec, x)
        x[1, 5] = value * self.largest
        after = self.coded(codec, x)
        shares = any(spec.entries_per_block is not None for spec in codec.layout((4, 400)).values())
        block = after[1, : codec.block_size] if shares else after[1, 5]
        assert bool(torch.isfinite(block).any()) == (value == 1.0)
        if codec.block_size is not None:
            others = torch.ones(4, 400, dtype=torch.bool, device="cpu")
            others[1, : codec.block_size] = False
            assert torch.isfinite(after[others]).all()
            if self.independent_blocks:
                assert torch.equal(after[others], before[others])

    def test_rounding_is_unbiased_or_takes_no_noise(self, codec: Codec) -> None:
        generator = torch.Generator().manual_seed(0)
        draws = torch.randperm(65536, generator=generator, device="cpu").int().view(512, 128)
        if not codec.rounds:
            x = self.values(codec, (512, 128))
            assert torch.equal(self.coded(codec, x, draws), self.coded(codec, x))
            return
        for share in UNBIASED_SHARES:
            x = torch.full((512, 128), share, device="cpu")
            x[:, 0] = 1.0
            decoded = self.coded(codec, x if codec.signed else x.square(), draws).double()
            found = (decoded if codec.signed else decoded.sqrt())[:, 1:]
            rtol = self.relative_error
            torch.testing.assert_close(decoded[:, 0], decoded.new_ones(512), rtol=rtol, atol=0.0)
            assert float(found.std()) > 0
            bound = 4 * float(found.std()) / found.numel() ** 0.5 + 1e-6
            assert abs(float(found.mean()) - float(x[0, 1])) <= bound, share

    def test_slicing_rows_of_the_fields_is_slicing_the_tensor(self, codec: Codec) -> None:
        if codec.block_size is None or not codec.tiled:
            return
        for shape in ODD:
            draws, x = noise(shape), self.values(codec, shape)
            later = self.values(codec, shape, 1.1) * 0.9
            whole = codec.encode_tensor(x, draws)
            updated = self.stepped(codec, whole, later, draws)
            for rows in (slice(0, 5), slice(5, 12), slice(3, 3)):
                part = codec.encode_tensor(x[rows], draws[rows])
                assert all(torch.equal(part[name], whole[name][rows]) for name in whole)
                part = self.stepped(codec, part, later[rows], draws[rows])
                assert all(torch.equal(part[name], updated[name][rows]) for name in whole)

    @staticmethod
    def stepped(
        codec: Codec, fields: Mapping[str, Tensor], x: Tensor, draws: Tensor
    ) -> dict[str, Tensor]:
        """Return the fields after a step that makes the moment ``x``."""
        fields = {name: field.clone() for name, field in fields.items()}
        for tile in codec.grid(x.shape).tiles():
            fitted = codec.refit(tile.read(x), codec.read_tile(fields, tile))
            coded = codec.encode(tile.read(x), fitted, tile.read(draws))
            codec.write_tile(fields, tile, {**fitted, **coded})
        return fields

    def test_tiles_code_as_the_tensor_does(
        self, codec: Codec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not codec.tiled:
            return
        size = 64 * (codec.block_size or 16)
        shape = (2, 2 * size + 3)
        x, draws = self.values(codec, shape), noise(shape)
        whole = codec.encode_tensor(x, draws)
        decoded = codec.decode_tensor(whole, shape)
        monkeypatch.setattr(base, "TILE_ELEMENTS", size)
        cut = codec.encode_tensor(x, draws)
        assert all(torch.equal(whole[name], cut[name]) for name in whole)
        assert torch.equal(codec.decode_tensor(whole, shape), decoded)

    def test_tensors_of_any_strides_code_like_contiguous_ones(self, codec: Codec) -> None:
        own = self.of_shape(codec, (64, 3, 5, 7))
        x = self.values(codec, (64, 3, 5, 7)).to(memory_format=torch.channels_last)
        assert not x.is_contiguous()
        a, b = (own.encode_tensor(y, noise(tuple(x.shape))) for y in (x, x.contiguous()))
        assert all(torch.equal(a[name], b[name]) for name in a)

    def test_configuration_round_trips_through_json(self, codec: Codec) -> None:
        config = codec.to_dict()
        assert config["name"] == codec.name
        assert type(codec).from_dict(json.loads(json.dumps(config))) == codec
        with pytest.raises(ConfigurationError, match="has no option 'no_such_option'"):
            type(codec).from_dict({**config, "no_such_option": 1})
        for size in (0, True, "128") if "block_size" in config else ():
            with pytest.raises(ConfigurationError, match=f"block_size={size!r}"):
                type(codec).from_dict({**config, "block_size": size})
