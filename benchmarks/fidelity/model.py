"""GPT-2: pre-norm blocks, learned positions, biases, the output tied to the token embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.fidelity.settings import Size


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, time, width]`` to the same shape."""
        q, k, v = self.c_attn(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.c_proj(mixed.transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    """Two layers with a GELU, four times the width between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, time, width]`` to the same shape."""
        out: Tensor = self.c_proj(functional.gelu(self.c_fc(x), approximate="tanh"))
        return out


class Block(nn.Module):
    """Attention and MLP, each behind a norm and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, time, width]`` to the same shape."""
        x = x + self.attn(self.ln_1(x))
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class GPT2(nn.Module):
    """A language model whose forward pass is its loss; parameters are named as in GPT-2."""

    def __init__(self, size: Size, vocab_size: int) -> None:
        super().__init__()
        self.size = size
        self.wte = nn.Embedding(vocab_size, size.width)
        self.wpe = nn.Embedding(size.context, size.width)
        self.h = nn.ModuleList(Block(size.width, size.heads) for _ in range(size.layers))
        self.ln_f = nn.LayerNorm(size.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the mean cross-entropy, in nats per token, of predicting each next token.

        Args:
            tokens: int32 ``[batch, context + 1]``.
        """
        inputs, targets = tokens[:, :-1], tokens[:, 1:].long()
        x = self.wte(inputs) + self.wpe.weight[: inputs.shape[1]]
        for block in self.h:
            x = block(x)
        logits = functional.linear(self.ln_f(x), self.wte.weight)
        return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def initial_values(model: GPT2, seed: int) -> list[Tensor]:
    """Return GPT-2's initialisation of each parameter, on the CPU and equal for equal seeds.

    Matrices are normal with sd 0.02, those that write to the residual stream with 0.02 over the
    root of their number; norms begin at one and biases at zero.
    """
    generator = torch.Generator().manual_seed(seed)
    residual_sd = 0.02 / (2 * model.size.layers) ** 0.5
    values = []
    for name, param in model.named_parameters():
        if param.ndim >= 2:
            sd = residual_sd if name.endswith("c_proj.weight") else 0.02
            values.append(torch.randn(param.shape, generator=generator).mul_(sd))
        else:
            one = name.endswith("weight")
            values.append(torch.ones(param.shape) if one else torch.zeros(param.shape))
    return values
