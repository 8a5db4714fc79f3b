"""Which lossless compression suits LUMA's state: ratio and speed on codes of a real run.

Trains a small transformer on the text that ships with Python, then compresses each kind of stored
tensor in chunks, by every way in the table. Usage: ``python benchmarks/compression.py [STEPS]``.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from pydoc_data import topics

import numpy as np
import numpy.typing as npt
import torch
import zstandard
from torch import nn
from torch.nn import functional

from luma_core.checkpoint.compression import CHUNK_BYTES, ZSTD_LEVEL
from luma_core.optim import LUMA

Bytes = npt.NDArray[np.uint8]

CONTEXT, WIDTH, BATCH = 128, 256, 16
LEVELS = (-1, 1, 2, 3, 9)


class Transformer(nn.Module):
    """Two causal layers over bytes."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, 0.0, batch_first=True)
        self.token = nn.Embedding(256, WIDTH)
        self.place = nn.Embedding(CONTEXT, WIDTH)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 256)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return next-byte logits ``[batch, CONTEXT, 256]`` of bytes ``[batch, CONTEXT]``."""
        hidden = self.layers(self.token(x) + self.place.weight, mask=self.mask, is_causal=True)
        out: torch.Tensor = self.head(hidden)
        return out


def trained_state(steps: int) -> dict[str, tuple[Bytes, int]]:
    """Return the bytes and the element size of each kind of stored tensor."""
    torch.manual_seed(0)
    text = torch.tensor(list("".join(topics.topics.values()).encode()))
    model = Transformer()
    optimizer = LUMA(model.named_parameters(), seed=0)
    for _ in range(steps):
        starts = torch.randint(0, len(text) - CONTEXT - 1, (BATCH,))
        batch = torch.stack([text[i : i + CONTEXT + 1] for i in starts.tolist()])
        optimizer.zero_grad()
        logits = model(batch[:, :-1])
        functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
        optimizer.step()
    kinds = defaultdict(list)
    for state in optimizer.parameter_states():
        for key, tensor in state.fields.items():
            kinds[key].append(tensor.reshape(-1))
    joined = {key: torch.cat(tensors) for key, tensors in kinds.items()}
    return {key: (x.view(torch.uint8).numpy(), x.element_size()) for key, x in joined.items()}


def compress(raw: Bytes, itemsize: int, level: int, *, planes: bool) -> tuple[float, float]:
    """Return the ratio and the speed in MB/s on one thread."""
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=True)
    stored = 0
    began = time.perf_counter()
    for start in range(0, raw.nbytes, CHUNK_BYTES):
        piece = raw[start : start + CHUNK_BYTES]
        if planes:
            piece = np.ascontiguousarray(piece.reshape(-1, itemsize).T)
        stored += len(compressor.compress(piece.data))
    return raw.nbytes / stored, raw.nbytes / (time.perf_counter() - began) / 1e6


def main() -> None:
    """Print one row per kind of tensor and way."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    print(f"after {steps} steps; checkpoints use byte planes and zstd level {ZSTD_LEVEL}")
    print(f"{'tensor':<20}{'MB':>7}  {'way':<10}{'level':>6}{'ratio':>8}{'MB/s':>8}")
    for key, (raw, itemsize) in trained_state(steps).items():
        for planes in (False, True):
            for level in LEVELS:
                ratio, speed = compress(raw, itemsize, level, planes=planes)
                way = "planes" if planes else "as it is"
                print(
                    f"{key:<20}{raw.nbytes / 1e6:>7.2f}  {way:<10}{level:>6}"
                    f"{ratio:>8.3f}{speed:>8.0f}"
                )


if __name__ == "__main__":
    main()
