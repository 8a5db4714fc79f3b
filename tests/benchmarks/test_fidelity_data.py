"""Training and held-out text are disjoint, and what is kept in a file is what was tokenised."""

from __future__ import annotations

import gzip
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks.fidelity.corpus import Corpus, read_texts
from benchmarks.fidelity.settings import lr_share
from benchmarks.fidelity.tokens import Tokens, tokenise
from benchmarks.fidelity.training import window_starts
from luma_core.errors import ConfigurationError

TEXTS = ["".join(f"Line {i} of text {t}.\n\n" for i in range(200)) for t in range(3)]


def corpus(texts: list[str]) -> Corpus:
    return Corpus.from_texts(texts, piece_characters=100, held_out_share=0.2)


def test_division_loses_nothing_and_repeats_nothing() -> None:
    made = corpus([*TEXTS, TEXTS[0]])
    assert not set(made.train) & set(made.held_out)
    assert sorted(made.train + made.held_out) == sorted(
        corpus(TEXTS).train + corpus(TEXTS).held_out
    )
    assert sum(map(len, made.train + made.held_out)) == sum(map(len, TEXTS))
    assert all(len(piece) <= 100 for piece in made.train + made.held_out)
    share = sum(map(len, made.held_out)) / sum(map(len, TEXTS))
    assert 0.2 <= share < 0.22


def test_division_mixes_texts_and_does_not_depend_on_their_order() -> None:
    made = corpus(TEXTS)
    assert corpus(TEXTS[::-1]) == made
    assert all(any(f"of text {t}" in piece for piece in made.held_out) for t in range(3))


def test_text_without_blank_lines_is_cut_too() -> None:
    made = corpus(["a" * 100 + "b" * 100 + "c" * 50])
    assert sorted(made.train + made.held_out) == ["a" * 100, "b" * 100, "c" * 50]


def test_folders_are_read_by_suffix_and_unpacked(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "a.md").write_text("first")
    (tmp_path / "b" / "c.rst.gz").write_bytes(gzip.compress(b"second"))
    (tmp_path / "b" / "d.png").write_bytes(b"\x89PNG")
    assert read_texts([tmp_path]) == ["first", "second"]
    with pytest.raises(ConfigurationError, match="neither a file nor a folder"):
        read_texts([tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="holds no text file"):
        read_texts([tmp_path / "empty"])


def test_too_little_text_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="holds 1 pieces"):
        corpus(["one"])


def test_tokens_are_below_the_vocabulary_and_survive_their_file(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    tokens = tokenise(corpus(TEXTS), vocab_size=300, max_train_tokens=500)
    assert len(tokens.train) == 500
    assert 256 < tokens.vocab_size <= 300
    assert max(tokens.train.max(), tokens.held_out.max()) < tokens.vocab_size
    tokens.save(tmp_path / "t.npz")
    loaded = Tokens.load(tmp_path / "t.npz")
    assert loaded.vocab_size == tokens.vocab_size
    np.testing.assert_array_equal(loaded.train, tokens.train)
    np.testing.assert_array_equal(loaded.held_out, tokens.held_out)
    assert [path.name for path in tmp_path.iterdir()] == ["t.npz"]


def test_tokens_above_the_vocabulary_are_refused(tmp_path: Path) -> None:
    row = np.arange(10, dtype=np.uint16)
    Tokens(row, row, vocab_size=9).save(tmp_path / "t.npz")
    with pytest.raises(ConfigurationError, match="below vocab_size=9"):
        Tokens.load(tmp_path / "t.npz")


def test_each_pass_takes_sequences_that_do_not_overlap() -> None:
    starts = window_starts(1001, 100, 25, seed=3)
    assert starts.min() >= 0
    assert starts.max() + 100 < 1001
    first = np.sort(starts[:9])
    assert (np.diff(first) == 100).all()
    np.testing.assert_array_equal(starts, window_starts(1001, 100, 25, seed=3))
    assert (starts != window_starts(1001, 100, 25, seed=4)).any()


def test_learning_rate_rises_and_falls() -> None:
    cosine = [lr_share("cosine", step, 100) for step in range(100)]
    assert cosine[0] == pytest.approx(0.1)
    assert cosine[9] == cosine[10] == 1.0
    assert all(a >= b for a, b in pairwise(cosine[10:]))
    assert cosine[-1] == pytest.approx(0.1)
    assert lr_share("constant", 99, 100) == 1.0
