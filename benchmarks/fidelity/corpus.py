"""Text files into pieces, and pieces into a training part and a held-out part."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from luma_core.errors import ConfigurationError

TEXT_SUFFIXES = (".txt", ".rst", ".md", ".tex", ".yaml")
"""What is read from a folder, with or without ``.gz`` behind it; a file named alone may be any."""

_COMPRESSED = (".gz", ".dz")


@dataclass(frozen=True)
class Corpus:
    """Two disjoint sets of pieces of text.

    Attributes:
        train: pieces in the order in which they are joined.
        held_out: pieces that no model and no tokenizer is trained on.
    """

    train: tuple[str, ...]
    held_out: tuple[str, ...]

    @classmethod
    def from_texts(
        cls, texts: Sequence[str], *, piece_characters: int, held_out_share: float
    ) -> Corpus:
        """Cut texts into pieces, drop repeated ones and set some aside.

        Pieces are sorted by their hash. This mixes the texts in a way that depends on nothing but
        them, and the first pieces, ``held_out_share`` of all text, are the held-out part.

        Raises:
            ConfigurationError: there are fewer than two different pieces.
        """
        pieces = {
            blake2b(piece.encode(), digest_size=16).digest(): piece
            for text in texts
            for piece in _pieces(text, piece_characters)
        }
        ordered = [pieces[digest] for digest in sorted(pieces)]
        if len(ordered) < 2:
            raise ConfigurationError(
                f"data holds {len(ordered)} pieces of text; at least two are needed.",
                hint="Give a longer text.",
            )
        wanted = held_out_share * sum(len(piece) for piece in ordered)
        count, taken = 0, 0
        while count < len(ordered) - 1 and taken < wanted:
            taken += len(ordered[count])
            count += 1
        return cls(train=tuple(ordered[count:]), held_out=tuple(ordered[:count]))

    def digest(self) -> str:
        """Return a short hash of all text and of how it is divided."""
        total = blake2b(digest_size=8)
        for part in (self.train, self.held_out):
            for piece in part:
                total.update(piece.encode() + b"\0")
            total.update(b"\1")
        return total.hexdigest()


def read_texts(paths: Sequence[Path]) -> list[str]:
    """Read files, and the text files in folders.

    Raises:
        ConfigurationError: a path is no file or folder, or is a folder without text.
    """
    return [text for path in paths for text in _read(path)]


def python_topics() -> list[str]:
    """Return the topics of Python's own ``help()``, about half a million bytes of prose."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def _pieces(text: str, piece_characters: int) -> Iterator[str]:
    """Cut at blank lines, so that no piece is longer than ``piece_characters``."""
    start = 0
    while len(text) - start > piece_characters:
        cut = text.rfind("\n\n", start, start + piece_characters) + 2
        cut = start + piece_characters if cut <= start + 2 else cut
        yield text[start:cut]
        start = cut
    if text[start:].strip():
        yield text[start:]


def _read(path: Path) -> Iterator[str]:
    if path.is_file():
        yield _decode(path).decode(errors="replace")
        return
    if not path.is_dir():
        raise ConfigurationError(f"data {path} is neither a file nor a folder.")
    found = False
    for file in sorted(path.rglob("*")):
        name = file.with_suffix("") if file.suffix in _COMPRESSED else file
        if name.suffix in TEXT_SUFFIXES and file.is_file():
            found = True
            yield _decode(file).decode(errors="replace")
    if not found:
        raise ConfigurationError(
            f"data {path} holds no text file.",
            hint=f"In a folder, {', '.join(TEXT_SUFFIXES)} are read; or name a file.",
        )


def _decode(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix in _COMPRESSED else data
