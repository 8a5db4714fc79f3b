"""Which lossless compression suits LUMA's state: ratio and speed on codes of a real run.

Trains a small transformer on the text that ships with Python, then compresses each kind of stored
tensor in chunks, by every way in the table. With ``--delta``, saves checkpoints some steps apart
instead, each in full and as differences to the first, and prints what the state takes on disk.
Usage: ``python -m benchmarks.compression [STEPS] [--delta]``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from pydoc_data import topics

import numpy as np
import numpy.typing as npt
import torch
import zstandard
from torch import nn
from torch.nn import functional

from luma_core import checkpoint
from luma_core.checkpoint import Manifest
from luma_core.checkpoint.format.compression import CHUNK_BYTES, ZSTD_LEVEL
from luma_core.optim import LUMA, TurboAdam

Bytes = npt.NDArray[np.uint8]

CONTEXT, WIDTH, BATCH = 128, 256, 16
LEVELS = (-1, 1, 2, 3, 9)
DISTANCES = (1, 10, 100)
OPTIMIZERS: dict[str, Callable[[nn.Module], LUMA | TurboAdam]] = {
    "LUMA": lambda model: LUMA(model.named_parameters(), seed=0),
    "TurboAdam": lambda model: TurboAdam(model.named_parameters(), seed=0),
}


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


class Training:
    """A transformer and its optimizer, repeatable step by step."""

    def __init__(self, optimizer: str) -> None:
        torch.manual_seed(0)
        self._text = torch.tensor(list("".join(topics.topics.values()).encode()))
        self._model = Transformer()
        self.optimizer = OPTIMIZERS[optimizer](self._model)

    def train(self, steps: int) -> None:
        """Take some steps."""
        for _ in range(steps):
            starts = torch.randint(0, len(self._text) - CONTEXT - 1, (BATCH,))
            batch = torch.stack([self._text[i : i + CONTEXT + 1] for i in starts.tolist()])
            self.optimizer.zero_grad()
            logits = self._model(batch[:, :-1])
            functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
            self.optimizer.step()


def trained_state(steps: int) -> dict[str, tuple[Bytes, int]]:
    """Return the bytes and the element size of each kind of stored tensor."""
    training = Training("LUMA")
    training.train(steps)
    kinds = defaultdict(list)
    for state in training.optimizer.parameter_states():
        for key, tensor in state.fields.items():
            kinds[key].append(tensor.reshape(-1))
    joined = {key: torch.cat(tensors) for key, tensors in kinds.items()}
    return {key: (x.view(torch.uint8).numpy(), x.element_size()) for key, x in joined.items()}


def stored_bytes(manifest: Manifest) -> dict[str, int]:
    """Return what each moment takes on disk, and both together."""
    found: dict[str, int] = defaultdict(int)
    for entry in manifest.tensors:
        moment = entry.name.rpartition("/")[2].partition(".")[0]
        found[moment] += entry.stored_bytes
    return {**found, "both": sum(found.values())}


def print_deltas(steps: int) -> None:
    """Print what states some steps apart take, in full and as differences to the first."""
    print(f"the first checkpoint after {steps} steps; AdamW in float32 has 64 bits per parameter")
    print(
        f"{'optimizer':<11}{'steps apart':>12}  {'moment':<12}{'full':>8}{'delta':>8}{'ratio':>7}"
    )
    print(f"{'':<37}{'bits per parameter':>16}")
    for name in OPTIMIZERS:
        training = Training(name)
        training.train(steps)
        with tempfile.TemporaryDirectory() as folder:
            first = Path(folder) / "0"
            checkpoint.save(first, optimizer=training.optimizer)
            done = 0
            for distance in DISTANCES:
                training.train(distance - done)
                done = distance
                place = Path(folder) / str(distance)
                full = checkpoint.save(f"{place}-full", optimizer=training.optimizer)
                delta = checkpoint.save(place, optimizer=training.optimizer, base=first)
                _print_distance(name, distance, full, delta)


def _print_distance(name: str, distance: int, full: Manifest, delta: Manifest) -> None:
    elements = full.summary.elements
    small = stored_bytes(delta)
    for moment, size in stored_bytes(full).items():
        print(
            f"{name:<11}{distance:>12}  {moment:<12}{8 * size / elements:>8.2f}"
            f"{8 * small[moment] / elements:>8.2f}{size / small[moment]:>7.2f}"
        )


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
    """Print one row per kind of tensor and way, or per distance and moment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("steps", nargs="?", type=int, default=100)
    parser.add_argument("--delta", action="store_true")
    options = parser.parse_args()
    if options.delta:
        print_deltas(options.steps)
    else:
        print_ways(options.steps)


def print_ways(steps: int) -> None:
    """Print one row per kind of tensor and way."""
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
