"""Sets of parameter shapes that step times are measured on."""

from __future__ import annotations

from collections.abc import Callable

Shapes = list[tuple[int, ...]]


def gpt2() -> Shapes:
    """GPT-2 with 124M parameters: 148 tensors, the head tied to the embedding."""
    d = 768
    block: Shapes = [(d,), (d,), (3 * d, d), (3 * d,), (d, d), (d,)]
    block += [(d,), (d,), (4 * d, d), (4 * d,), (d, 4 * d), (d,)]
    return [(50257, d), (1024, d), *block * 12, (d,), (d,)]


def llama1b() -> Shapes:
    """A Llama-like model of 1.1e9 parameters: 147 tensors."""
    d, ffn, kv, vocab = 2048, 8192, 512, 32000
    attention: Shapes = [(d, d), (kv, d), (kv, d), (d, d)]
    block = [*attention, (ffn, d), (ffn, d), (d, ffn), (d,), (d,)]
    return [(vocab, d), *block * 16, (d,), (vocab, d)]


def flat50m() -> Shapes:
    """One flat tensor of 50 million elements."""
    return [(50_000_000,)]


SETS: dict[str, Callable[[], Shapes]] = {"gpt2": gpt2, "llama1b": llama1b, "flat50m": flat50m}
