"""The compiled CPU library of ``luma_kernels``.

It is imported at first use, so that ``import luma_core`` loads no kernels.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from luma_core.backends.base import Backend, Plan
from luma_core.codecs import FP32, Codec, Fields
from luma_core.errors import BackendUnavailableError

if TYPE_CHECKING:
    from luma_core.rules import ParameterStep, Rule

_log = logging.getLogger("luma")


@cache
def native_cpu() -> ModuleType | None:
    """Return the package ``luma_kernels.cpu`` if its library can be used here, else ``None``.

    The first time that it cannot, one warning is logged that says why.
    """
    try:
        from luma_kernels import cpu
    except ModuleNotFoundError as error:
        reason = str(error)
    else:
        status = cpu.native_status()
        if status.available:
            return cpu
        reason = status.reason
    _log.warning("CPU tensors take the slower PyTorch path: %s See `luma doctor`.", reason)
    return None


class Native(Backend):
    """The native CPU library: one pass over memory, in C++."""

    name: ClassVar[str] = "native"
    device: ClassVar[str | None] = "cpu"
    advantage: ClassVar[str] = "the native CPU library has a kernel for it"

    def why_not_installed(self) -> str:
        return "the native CPU library cannot be used" if native_cpu() is None else ""

    def check_available(self) -> None:
        if native_cpu() is None:
            raise BackendUnavailableError(
                "backend='native' needs the compiled CPU library, which cannot be used here.",
                hint="`luma doctor` says why; backend='auto' falls back to PyTorch.",
            )

    def why_no_kernel(self, rule: Rule, codecs: Mapping[str, Codec]) -> str:
        from luma_kernels import cpu

        return cpu.unsupported_codecs(rule, codecs)

    def step(self, rule: Rule, item: ParameterStep) -> Tensor | None:
        cpu = native_cpu() if item.param.device.type == "cpu" else None
        if cpu is None or cpu.unsupported_step(rule, item):
            return None
        bad: Tensor = cpu.step_parameter(item)
        return bad

    def plan(self, backend: str, rule: Rule) -> Plan | None:
        """Return what steps many parameters of a rule in one call.

        Args:
            backend: what the optimizer asks for.
            rule: its rule.

        Returns:
            ``None`` where backend, machine or rule has none.
        """
        cpu = native_cpu() if backend in ("auto", self.name) else None
        plan: Plan | None = None if cpu is None else cpu.plan_steps(rule)
        return plan

    def encode(self, codec: Codec, x: Tensor, draws: Tensor | None) -> Fields | None:
        cpu = native_cpu() if _is_coded(codec) and x.device.type == "cpu" else None
        coded: Fields | None = None if cpu is None else cpu.encode(codec, x, draws)
        return coded

    def decode(
        self, codec: Codec, fields: Mapping[str, Tensor], shape: tuple[int, ...]
    ) -> Tensor | None:
        on_cpu = next(iter(fields.values())).device.type == "cpu"
        cpu = native_cpu() if _is_coded(codec) and on_cpu else None
        decoded: Tensor | None = None if cpu is None else cpu.decode(codec, fields, shape)
        return decoded


def _is_coded(codec: Codec) -> bool:
    """Return whether coding takes time, block by block, that the library could save."""
    return codec.tiled and not isinstance(codec, FP32)


NATIVE = Native()
