"""Launches a kernel many times without binding its arguments anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor


class KernelLaunch:
    """A kernel and its compile-time parameters, on one device.

    Triton binds and checks every argument at every launch, which takes tens of microseconds with
    many compile-time parameters. Here that is done by the first launch; later ones go straight to
    the compiled kernel. So all launches of one object must agree in what Triton specialises on:
    the arguments' types and the alignment of pointers and integers, unless the kernel is declared
    not to specialise on them. In Triton's interpreter, which compiles nothing, every launch binds.

    Multiplications and additions are fused only where a kernel says so. The compiler's own choice
    differs between copies of one function, and with it the last bit of what parts of a parameter
    and the whole have, or a masked tile and a full one.

    Args:
        kernel: a function under ``triton.jit``.
        constants: its ``tl.constexpr`` parameters, which come last in its signature.
        options: of the compiler, such as ``num_warps``.
    """

    def __init__(self, kernel: Any, constants: Mapping[str, Any], **options: Any) -> None:
        self._kernel = kernel
        self._constants = dict(constants)
        self._options = {"enable_fp_fusion": False, **options}
        self._last = tuple(constants[name] for name in kernel.arg_names if name in constants)
        self._compiled: Any = None

    def __call__(self, programs: int, *arguments: Any) -> None:
        """Launch ``programs`` programs on the current device's current stream."""
        if self._compiled is None:
            self._compiled = self._kernel[(programs,)](
                *arguments, **self._constants, **self._options
            )
        else:
            self._compiled[(programs, 1, 1)](*arguments, *self._last)

    def repeated(self, programs: int, *arguments: Any) -> Callable[[], Any] | None:
        """Return a function that launches with these arguments; ``None`` before the first launch.

        It passes addresses, which Triton takes as they are, where of tensors it would ask the
        driver. The tensors must outlive it.
        """
        if self._compiled is None:
            return None
        plain = [item.data_ptr() if isinstance(item, Tensor) else item for item in arguments]
        return partial(self._compiled[(programs, 1, 1)], *plain, *self._last)
