"""How exact Muon's update is with its momentum in few bits: ``python -m benchmarks.muon_codecs``.

Momentum runs in each codec for some steps of gradients of low rank with noise, whose rows and
columns differ in size. Printed is the relative error of the orthogonal matrix, compared with that
of an exact momentum, for two spreads of the sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from luma_core import backends
from luma_core.codecs import BF16, Codec, Luma16M, TableM
from luma_core.codecs.table_m import power_levels
from luma_core.rules.newton_schulz import SCHEDULES, newton_schulz

SHAPE, RANK, STEPS, MOMENTUM = (256, 384), 8, 150, 0.95
SPREADS = (0.3, 0.7)
CODECS: dict[str, Codec] = {
    "luma16_m": Luma16M(),
    "bf16": BF16(),
    "table_m, 8 bits, levels (k/128)**2": TableM(bits=8, levels=power_levels(8, 2.0)),
    "table_m, 8 bits, levels (k/128)**2.5": TableM(bits=8),
    "table_m, 8 bits, even levels": TableM(bits=8, levels=power_levels(8, 1.0)),
}


def errors(spread: float) -> dict[str, float]:
    """Return the relative error of the update with each codec."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    rows, cols = SHAPE
    sizes = torch.exp(normal(rows, 1) * spread) * torch.exp(normal(1, cols) * spread)
    signal = normal(rows, RANK) @ normal(RANK, cols) * 0.3
    exact = torch.zeros(SHAPE)
    coded = {name: torch.zeros(SHAPE) for name in CODECS}
    for _ in range(STEPS):
        grad = (signal + normal(rows, cols)) * sizes
        exact = exact.lerp(grad, 1 - MOMENTUM)
        draws = torch.randint(1 << 16, SHAPE, dtype=torch.int32, generator=generator)
        for name, codec in CODECS.items():
            new = coded[name].lerp(grad, 1 - MOMENTUM)
            fields = backends.encode(codec, new, draws if codec.rounds else None)
            coded[name] = backends.decode(codec, fields, SHAPE)
    expected = _orthogonal(exact)
    return {
        name: float((_orthogonal(x) - expected).norm() / expected.norm())
        for name, x in coded.items()
    }


def _orthogonal(x: Tensor) -> Tensor:
    return newton_schulz(x[None], SCHEDULES["keller"], 1e-7)[0]


def main() -> None:
    """Print the table."""
    found = [errors(spread) for spread in SPREADS]
    print("codec of the momentum".ljust(40), *(f"e^N(0, {spread})" for spread in SPREADS))
    for name in CODECS:
        print(name.ljust(40), *(f"{one[name]:>10.3f}" for one in found))


if __name__ == "__main__":
    main()
