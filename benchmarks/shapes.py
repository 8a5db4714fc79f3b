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


def parameter_names(shapes: Shapes) -> list[str]:
    """Return names for the shapes of a set, from which Adam-mini knows what each parameter is."""
    if shapes == llama1b():
        kinds = [f"{x}_proj" for x in ("q", "k", "v", "o", "gate", "up", "down")] + ["norm"] * 2
        inner = [f"layers.{i}.{j}.{kind}.weight" for i in range(16) for j, kind in enumerate(kinds)]
        return ["embed_tokens.weight", *inner, "norm.weight", "lm_head.weight"]
    if shapes == gpt2():
        kinds = ["ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias"]
        kinds += ["attn.c_proj.weight", "attn.c_proj.bias", "ln_2.weight", "ln_2.bias"]
        kinds += ["mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"]
        inner = [f"h.{i}.{kind}" for i in range(12) for kind in kinds]
        return ["wte.weight", "wpe.weight", *inner, "ln_f.weight", "ln_f.bias"]
    return [f"mlp.{i}.weight" for i in range(len(shapes))]


SETS: dict[str, Callable[[], Shapes]] = {"gpt2": gpt2, "llama1b": llama1b, "flat50m": flat50m}
