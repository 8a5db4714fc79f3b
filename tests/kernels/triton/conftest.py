"""Without a GPU these tests run the kernels in Triton's interpreter, which all tests ask for."""

import importlib.util
from typing import Any

import torch


def patch_once_a_launch() -> None:
    """Spare the interpreter most of its time.

    At every call of a device function it searches Triton's modules for what it has to replace,
    and finds all of it replaced by the launch or by an earlier call.
    """
    from triton.runtime import interpreter

    patch, launch = interpreter._patch_builtin, interpreter.GridExecutor.__call__
    patched: set[object] = set()

    def patch_once(package: object, builder: object, scope: object) -> None:
        if package not in patched:
            patched.add(package)
            patch(package, builder, scope)

    def launch_anew(self: object, *args: Any, **options: Any) -> None:
        patched.clear()
        launch(self, *args, **options)

    interpreter._patch_builtin = patch_once
    interpreter.GridExecutor.__call__ = launch_anew


if not torch.cuda.is_available() and importlib.util.find_spec("triton") is not None:
    patch_once_a_launch()
