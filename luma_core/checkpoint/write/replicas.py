"""Digests of tensors that several processes have, which must be equal in all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from isal.isal_zlib import crc32
from torch import Tensor

WHOLE_BYTES = 64 << 10
"""Bytes that are compared of a tensor: all of a smaller one, and runs spread over a larger one."""

_RUN_BYTES = 4 << 10


def digests(tensors: Mapping[str, Iterable[Tensor]]) -> dict[str, int]:
    """Return a CRC-32 of each item's tensors, which are equal where those are.

    Every process would have to read all that it has, of which it writes a share only. What differs
    after a step differs almost everywhere, so a sample of large tensors tells.

    Args:
        tensors: local ones, on any device, by name.
    """
    samples = [(name, _sample(tensor)) for name, some in tensors.items() for tensor in some]
    found = dict.fromkeys(tensors, 0)
    by_device: dict[torch.device, list[Tensor]] = {}
    for _, sample in samples:
        by_device.setdefault(sample.device, []).append(sample)
    # One transfer from each device: each would wait for it.
    here = {device: iter(_on_cpu(some)) for device, some in by_device.items()}
    for name, sample in samples:
        found[name] = crc32(next(here[sample.device]).numpy(), found[name])
    return found


def _on_cpu(samples: list[Tensor]) -> Iterable[Tensor]:
    if samples[0].device.type == "cpu":
        return samples
    found: tuple[Tensor, ...] = torch.cat(samples).cpu().split([s.numel() for s in samples])
    return found


def _sample(tensor: Tensor) -> Tensor:
    """Return some bytes of a tensor, 1-D uint8, at places that only its size decides."""
    data = tensor.detach().reshape(-1).view(torch.uint8)
    if data.numel() <= WHOLE_BYTES:
        return data
    count = WHOLE_BYTES // _RUN_BYTES
    apart = (data.numel() - _RUN_BYTES) // (count - 1)
    return data.as_strided((count, _RUN_BYTES), (apart, 1)).reshape(-1)
