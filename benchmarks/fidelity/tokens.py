"""Tokens of a corpus, by a tokenizer trained on its training part; kept in one ``.npz`` file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.fidelity.corpus import Corpus
from luma_core.errors import ConfigurationError

Array = npt.NDArray[np.uint16]

END = "<|end|>"
"""Stands between pieces."""


@dataclass(frozen=True)
class Tokens:
    """A tokenised corpus.

    Attributes:
        train: uint16 ``[tokens]``.
        held_out: uint16 ``[tokens]``.
        vocab_size: number of different tokens; every token is below it.
    """

    train: Array
    held_out: Array
    vocab_size: int

    def save(self, path: Path) -> None:
        """Write the file whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        with partial.open("wb") as file:
            np.savez_compressed(
                file, train=self.train, held_out=self.held_out, vocab_size=self.vocab_size
            )
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Tokens:
        """Read what `save` wrote.

        Raises:
            ConfigurationError: the file does not hold such tokens.
        """
        try:
            with np.load(path) as arrays:
                loaded = cls(arrays["train"], arrays["held_out"], int(arrays["vocab_size"]))
        except (OSError, ValueError, KeyError) as error:
            raise ConfigurationError(
                f"tokens {path} cannot be read: {error}",
                hint="Write it with --data TEXT --prepare FILE.",
            ) from error
        for name in ("train", "held_out"):
            part = getattr(loaded, name)
            if part.dtype != np.uint16 or part.ndim != 1 or part.max() >= loaded.vocab_size:
                raise ConfigurationError(
                    f"tokens {path}: {name} must be one row of uint16 below vocab_size="
                    f"{loaded.vocab_size}."
                )
        return loaded


def tokenise(corpus: Corpus, *, vocab_size: int, max_train_tokens: int | None = None) -> Tokens:
    """Train a byte-level BPE tokenizer on the training part and code both parts with it.

    Args:
        corpus: the text.
        vocab_size: number of tokens, at most 65,536.
        max_train_tokens: keep no more than these; pieces are in random order, so the first ones
            are a fair sample.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus.train, trainer)

    def code(pieces: tuple[str, ...], limit: int | None) -> Array:
        end = [tokenizer.token_to_id(END)]
        rows, count = [], 0
        for first in range(0, len(pieces), 256):
            for encoding in tokenizer.encode_batch(list(pieces[first : first + 256])):
                rows.append(np.array(end + encoding.ids, dtype=np.uint16))
                count += len(rows[-1])
            if limit is not None and count >= limit:
                break
        return np.concatenate(rows)[:limit]

    return Tokens(
        train=code(corpus.train, max_train_tokens),
        held_out=code(corpus.held_out, None),
        vocab_size=tokenizer.get_vocab_size(),
    )
