"""The text the demo trains on: the language reference that ships inside every Python."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from luma_core.errors import ConfigurationError

VOCABULARY = 256
"""Tokens are the bytes of the UTF-8 text."""

_HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class Corpus:
    """Two disjoint stretches of one text; nothing of ``held_out`` is ever trained on.

    Attributes:
        train: the first nine tenths, int64 ``[bytes]``.
        held_out: the last tenth, int64 ``[bytes]``.
    """

    train: Tensor
    held_out: Tensor

    @classmethod
    def load(cls) -> Corpus:
        """Read the topics of Python's own ``help()``, about half a million bytes of prose."""
        from pydoc_data.topics import topics

        return cls.from_text("\n\n".join(topics[name] for name in sorted(topics)))

    @classmethod
    def from_text(cls, text: str) -> Corpus:
        """Split ``text`` by position."""
        data = torch.tensor(list(text.encode()), dtype=torch.int64, device="cpu")
        cut = int(len(data) * (1 - _HELD_OUT_SHARE))
        return cls(train=data[:cut], held_out=data[cut:])

    def batch(
        self, *, seed: int, step: int, batch_size: int, context: int
    ) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets of one training step, a pure function of seed and step.

        Returns:
            Two int64 tensors ``[batch_size, context]``, the second shifted by one.

        Raises:
            ConfigurationError: the training text is not longer than ``context``.
        """
        starts_count = len(self.train) - context
        if starts_count < 1:
            raise ConfigurationError(
                f"context={context} must be below the {len(self.train)} bytes of training text."
            )
        # Takes both numbers whole; a torch generator would use 32 bits of one.
        starts = np.random.default_rng([seed, step]).integers(starts_count, size=(batch_size, 1))
        windows = self.train[torch.from_numpy(starts) + torch.arange(context + 1, device="cpu")]
        return windows[:, :-1], windows[:, 1:]

    def held_out_batches(self, *, batch_size: int, context: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the whole held-out text once, in windows that do not overlap."""
        usable = (len(self.held_out) - 1) // context * context
        inputs = self.held_out[:usable].view(-1, context)
        targets = self.held_out[1 : usable + 1].view(-1, context)
        yield from zip(inputs.split(batch_size), targets.split(batch_size), strict=True)
