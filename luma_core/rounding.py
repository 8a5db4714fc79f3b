"""Counter-based noise for stochastic rounding, shared by every backend.

The noise of one element in one step is a pure function of the optimizer's seed, the parameter's
name, the step and the element's *global* index in the parameter::

    key        = blake2b-64(seed, name)                     once per parameter, kept in its state
    s          = mix(step)
    k0, k1     = mix(key_lo ^ s), mix(key_hi ^ mix(s + GOLDEN))
    x          = index_lo + k0
    x          = (x ^ (x >> 16)) * M1
    x          = (x ^ (x >> 15) ^ k1 ^ (index_hi * GOLDEN)) * M2
    bits       = x ^ (x >> 16)
    first      = bits & 0xffff            noise of the first moment
    second     = bits >> 16               noise of the second moment
    third      = (bits * M3) >> 16        noise of the parameter itself (16-bit parameters)

All arithmetic is on 32-bit words with wrap-around and logical shifts, so PyTorch (which has only
signed 32-bit multiplication), Triton and C++ agree bit for bit. ``mix`` is the 32-bit finaliser
with multipliers ``0x7feb352d`` and ``0x846ca68b`` found by C. Wellons' hash-prospector search
(measured bias 0.17).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

from luma_core.lazy import import_later

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = import_later("torch", globals())


M1 = 0x7FEB352D
M2 = 0x846CA68B - (1 << 32)
M3 = 0x9E3779B1 - (1 << 32)
GOLDEN = 0x9E3779B9 - (1 << 32)

_INDEX_PERIOD = 1 << 32
_LONGEST_PIECE = 1 << 30


class StepKeys(NamedTuple):
    """The two signed 32-bit words that select one step's noise for one parameter."""

    k0: int
    k1: int


def wrap32(value: int) -> int:
    """Return ``value`` modulo 2**32 as a signed 32-bit integer."""
    return ((value + 0x80000000) & 0xFFFFFFFF) - 0x80000000


def _mix(x: int) -> int:
    x = wrap32((x ^ ((x >> 16) & 0xFFFF)) * M1)
    x = wrap32((x ^ ((x >> 15) & 0x1FFFF)) * M2)
    return x ^ ((x >> 16) & 0xFFFF)


def parameter_key(seed: int, name: str) -> int:
    """Return the signed 64-bit noise key of the parameter ``name`` under ``seed``.

    Args:
        seed: any integer; taken modulo 2**64.
        name: the parameter's fully qualified name.
    """
    salt = (seed & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little")
    digest = hashlib.blake2b(name.encode(), digest_size=8, key=salt).digest()
    return int.from_bytes(digest, "little", signed=True)


def step_keys(key: int, step: int) -> StepKeys:
    """Return the words that select the noise of ``step`` for the parameter with noise ``key``.

    Args:
        key: signed 64-bit integer from `parameter_key`.
        step: the number of the step, 1 for the first; taken modulo 2**32.
    """
    mixed = _mix(wrap32(step))
    low = _mix(wrap32(key) ^ mixed)
    high = _mix(wrap32(key >> 32) ^ _mix(wrap32(mixed + GOLDEN)))
    return StepKeys(low, high)


def random_bits(
    keys: StepKeys, start: int, count: int, *, device: torch.device | str | None = None
) -> Tensor:
    """Return 32 random bits for each element of the global index range ``[start, start + count)``.

    Args:
        keys: from `step_keys`.
        start: global index of the first element, 0 or more; 64 bits are used.
        count: number of elements.
        device: where the result lives.

    Returns:
        int32 tensor of shape ``[count]``. A slice of a longer range equals the range of the slice.
    """
    pieces = []
    stop = start + count
    while start < stop:
        high, low = divmod(start, _INDEX_PERIOD)
        length = min(stop - start, _INDEX_PERIOD - low, _LONGEST_PIECE)
        x = torch.arange(length, dtype=torch.int32, device=device)
        x += wrap32(low + keys.k0)
        x ^= (x >> 16) & 0xFFFF
        x *= M1
        x ^= (x >> 15) & 0x1FFFF
        x ^= keys.k1 ^ wrap32(high * GOLDEN)
        x *= M2
        x ^= (x >> 16) & 0xFFFF
        pieces.append(x)
        start += length
    if len(pieces) == 1:
        return pieces[0]
    return torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int32, device=device)


def random_bits_at(keys: StepKeys, indices: Tensor) -> Tensor:
    """Return 32 random bits for each of some global indices.

    Args:
        keys: from `step_keys`.
        indices: int64, 0 or more, of any shape.

    Returns:
        int32 tensor of the shape of ``indices``; equal to `random_bits` where those are a range.
    """
    high = (indices >> 32).to(torch.int32)
    x = (((indices + keys.k0 + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)).to(torch.int32)
    x ^= (x >> 16) & 0xFFFF
    x *= M1
    x ^= (x >> 15) & 0x1FFFF
    x ^= high * GOLDEN ^ keys.k1
    x *= M2
    x ^= (x >> 16) & 0xFFFF
    return x


def word_of(stream: int) -> int:
    """Return which 32 random bits of each element a stream is drawn from: see `draw_stream`."""
    return stream // 2


def word_keys(keys: StepKeys, word: int) -> StepKeys:
    """Return the words that select further random bits of a step; those of word 0 are ``keys``."""
    if word == 0:
        return keys
    return StepKeys(_mix(wrap32(keys.k0 + word * GOLDEN)), _mix(keys.k1 ^ wrap32(word * M1)))


def draw_stream(bits: Tensor, stream: int) -> Tensor:
    """Return a stream's 16 random bits, int32 in ``[0, 65535]``.

    Streams 0 and 1 are the halves of the first word, 2 and 3 those of the second, and so on.

    Args:
        bits: the random bits of each element that `word_keys` of the stream's `word_of` select.
        stream: 0 or more.
    """
    return second_draw(bits) if stream % 2 else first_draw(bits)


def first_draw(bits: Tensor) -> Tensor:
    """Return the low 16 of each element's random bits, int32 in ``[0, 65535]``."""
    return bits & 0xFFFF


def second_draw(bits: Tensor) -> Tensor:
    """Return the high 16 of each element's random bits, int32 in ``[0, 65535]``."""
    return (bits >> 16) & 0xFFFF


def third_draw(bits: Tensor) -> Tensor:
    """Return 16 further bits, pairwise independent of the first two draws, int32."""
    return ((bits * M3) >> 16) & 0xFFFF


def to_bfloat16(x: Tensor, draw: Tensor | None) -> Tensor:
    """Round float32 to bfloat16: stochastically with ``draw``, else to nearest even.

    Adds the 16-bit draw below the last kept mantissa bit and cuts, so the result is one of the two
    neighbours and unbiased. Infinities and NaN pass unchanged. A value within one step of the
    largest bfloat16 may round to infinity, as rounding to nearest would.

    Args:
        x: float32 tensor of any shape.
        draw: int32 tensor of the same shape in ``[0, 65535]``, or ``None``.
    """
    if draw is None:
        return x.to(torch.bfloat16)
    bits = x.contiguous().view(torch.int32)
    rounded = ((bits + draw) & -65536).view(torch.float32)
    return torch.where(torch.isfinite(x), rounded, x).to(torch.bfloat16)
