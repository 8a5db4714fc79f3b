"""A tiny language model and its data, which the examples share."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY, LENGTH, WIDTH = 96, 32, 64


class Block(nn.Module):
    """Attention and an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, of the shape of ``x``: ``[batch, length, width]``."""
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        y = self.norm_1(x)
        x = x + self.attention(y, y, y, attn_mask=mask, is_causal=True, need_weights=False)[0]
        return x + self.mlp(self.norm_2(x))


class TinyGPT(nn.Module):
    """Two blocks between an embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits ``[batch, length, vocabulary]`` of tokens ``[batch, length]``."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)

    def loss(self, tokens: Tensor) -> Tensor:
        """Return the mean loss of predicting each next token."""
        return next_token_loss(self(tokens), tokens)


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the mean loss of predicting each next token."""
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def batches(steps: int, *, seed: int = 0, size: int = 8) -> Iterator[Tensor]:
    """Yield batches of counting sequences, int64 ``[size, LENGTH]``."""
    for step in range(steps):
        generator = torch.Generator().manual_seed(seed * 100_003 + step)
        start = torch.randint(VOCABULARY, (size, 1), generator=generator)
        stride = torch.randint(1, 4, (size, 1), generator=generator)
        yield (start + stride * torch.arange(LENGTH)) % VOCABULARY
