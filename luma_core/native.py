"""The one place where this package reaches for the native CPU library of ``luma_kernels``.

It is imported at first use, so that ``import luma_core`` loads no kernels.
"""

from __future__ import annotations

import logging
from functools import cache
from types import ModuleType

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
