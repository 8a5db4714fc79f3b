"""The grid of both 16-bit codecs: bit patterns that must not change, and IEEE half precision."""

import numpy as np
import pytest
import torch

from luma_core.codecs import Luma16M, Luma16V

GOLDEN_M = [0, 30720, -2048, 30208, 1649, -32766, 0, 29013]
GOLDEN_V = [0, -4096, -4096, -5120, 3299, 512, 512, -7509]


def test_golden_codes() -> None:
    """Byte-exact: files written today must decode to the same values forever."""
    x = torch.tensor([[0.0, 1.0, -1.0, 0.75, 3e-9, -3e-12, 1e-20, 0.3333333]])
    fields = Luma16M(block_size=8).encode_tensor(x)
    assert fields["exponent"].tolist() == [97]
    assert fields["codes"].tolist() == [GOLDEN_M]
    fields = Luma16V(block_size=8).encode_tensor(x.square())
    assert fields["exponent"].tolist() == [97]
    assert fields["codes"].tolist() == [GOLDEN_V]


def test_codes_of_the_first_moment_are_half_precision_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 128, generator=generator) * torch.exp(
        4 * torch.randn(64, 128, generator=generator)
    )
    codec = Luma16M()
    fields = codec.encode_tensor(x)
    unit = 2.0 ** (fields["exponent"].double() - 97 - 15)
    halves = torch.from_numpy(fields["codes"].numpy().view(np.float16).astype(np.float64))
    assert torch.equal((halves * unit).float(), codec.decode_tensor(fields, (64, 128)))
    assert float(halves.abs().max()) <= 2**15


def test_roots_are_rounded_correctly() -> None:
    """As NumPy's, which follow IEEE 754; PyTorch's own change codes here on some CPUs."""
    x = torch.rand(1, 8192, 128, generator=torch.Generator().manual_seed(0))
    codec = Luma16V()
    roots = torch.from_numpy(np.sqrt(x.numpy()))
    fitted = {"exponent": codec.log_grid.fit(roots.amax(dim=-1, keepdim=True))}
    codes = codec.log_grid.encode(roots, fitted["exponent"], None)
    assert torch.equal(codec.fit(x)["exponent"], fitted["exponent"])
    assert torch.equal(codec.magnitudes(codec.encode(x, fitted, None)["codes"]), codes)


@pytest.mark.parametrize("codec", [Luma16M(), Luma16V(), Luma16M(block_size=None)], ids=repr)
def test_rounding_picks_one_of_the_two_neighbours_and_is_exactly_unbiased(
    codec: Luma16M | Luma16V,
) -> None:
    """All 65536 draws of one value: the mean code is the value's exact grid coordinate."""
    x = torch.full((1, 65536), 0.337)
    if isinstance(codec, Luma16V):
        x = x.square()
    codes = codec.encode_tensor(x, torch.arange(65536, dtype=torch.int32).view(1, -1))["codes"]
    size = codec.magnitudes(codes)
    assert int(size.max()) - int(size.min()) == 1
    mean = codec.decode_tensor(
        codec.encode_tensor(x, torch.arange(65536).int().view(1, -1)), x.shape
    )
    root = mean.double().sqrt() if isinstance(codec, Luma16V) else mean.double()
    assert float(root.mean()) == pytest.approx(0.337, rel=2e-7)
