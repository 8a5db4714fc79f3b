"""Transfers between the host's memory and a CUDA device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from luma_core.optim.offload.pipeline import Move

Copies = list[tuple[Tensor, Tensor]]
"""Pairs of runs: where they live, and their place in a slot."""


def copies(moves: Sequence[Move], slot: Tensor) -> Copies:
    """Return each run with its place in a slot."""
    return [(home, slot[first : first + home.numel()]) for home, first in moves]


class CudaMover:
    """Copies on two streams of their own, one for each direction, beside the current stream.

    Args:
        device: of the slots.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._into = torch.cuda.Stream(device)
        self._back = torch.cuda.Stream(device)

    def slot(self, nbytes: int) -> Tensor:
        """Return memory of the device."""
        memory = torch.empty(nbytes, dtype=torch.uint8, device=self._device)
        self._into.wait_stream(torch.cuda.current_stream(self._device))
        return memory

    def bind(self, moves: Sequence[Move], slot: Tensor) -> Copies:
        """Return the runs' pairs."""
        return copies(moves, slot)

    def fetch(self, bound: Copies, after: Sequence[torch.cuda.Event]) -> torch.cuda.Event:
        """Copy into the slot."""
        with torch.cuda.stream(self._into):
            for event in after:
                self._into.wait_event(event)
            for home, place in bound:
                place.copy_(home, non_blocking=True)
            done: torch.cuda.Event = self._into.record_event()
        return done

    def ready(self, bound: Copies, token: torch.cuda.Event) -> None:
        """Let the current stream wait."""
        torch.cuda.current_stream(self._device).wait_event(token)

    def wait(self, token: torch.cuda.Event) -> None:
        """Let the current stream wait."""
        torch.cuda.current_stream(self._device).wait_event(token)

    def store(self, bound: Copies) -> torch.cuda.Event:
        """Copy back, behind what the current stream does."""
        self._back.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._back):
            for home, place in bound:
                home.copy_(place, non_blocking=True)
            done: torch.cuda.Event = self._back.record_event()
        return done

    def synchronize(self) -> None:
        """Wait for both streams."""
        self._into.synchronize()
        self._back.synchronize()

    def forget(self) -> None:
        """Wait for both streams."""
        self.synchronize()


class HostMover:
    """Copies within the host's memory, at once; for state and slots that are both there."""

    def slot(self, nbytes: int) -> Tensor:
        """Return memory of the host."""
        return torch.empty(nbytes, dtype=torch.uint8, device="cpu")

    def bind(self, moves: Sequence[Move], slot: Tensor) -> Copies:
        """Return the runs' pairs."""
        return copies(moves, slot)

    def fetch(self, bound: Copies, after: Sequence[None]) -> None:
        """Copy into the slot."""
        for home, place in bound:
            place.copy_(home)

    def ready(self, bound: Copies, token: None) -> None:
        """Wait for nothing."""

    def wait(self, token: None) -> None:
        """Wait for nothing."""

    def store(self, bound: Copies) -> None:
        """Copy back."""
        for home, place in bound:
            home.copy_(place)

    def synchronize(self) -> None:
        """Wait for nothing."""

    def forget(self) -> None:
        """Wait for nothing."""
