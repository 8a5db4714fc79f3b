"""Finds and loads the compiled library, and says why where there is none."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_char_p, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torch import Tensor

from luma_core.errors import BackendUnavailableError
from luma_kernels.cpu.structs import INTERFACE_VERSION, Coding, Instance, Squares, Step

LIBRARY_PATH = Path(__file__).with_name("_native.so")
"""Where installing puts the library."""


@dataclass(frozen=True)
class NativeStatus:
    """Whether the native library can be used, and how.

    Attributes:
        available: whether it was loaded.
        reason: why not; empty if it was.
        path: where it is, or would be.
        instruction_sets: builds that run on this CPU, slowest first; the last is used unless
            `use_instruction_set` chose another.
        threading: ``OpenMP`` or ``std::thread``; empty if it was not loaded.
    """

    available: bool
    reason: str
    path: str
    instruction_sets: tuple[str, ...]
    threading: str


def address(tensor: Tensor) -> int:
    """Return where a tensor's memory is, for the library: nothing else may give it a pointer.

    Raises:
        BackendUnavailableError: its memory is not the CPU's, or it has none.
    """
    pointer = tensor.data_ptr()
    if not tensor.is_cpu or (not pointer and tensor.numel()):
        raise BackendUnavailableError(
            f"the native CPU library was given a tensor of {tensor.dtype} {list(tensor.shape)} "
            f"without memory of the CPU (device {tensor.device}).",
            hint="Use backend='auto', which gives it none, or move the tensor to the CPU.",
        )
    return pointer


class NativeLibrary:
    """The loaded library.

    Args:
        path: the shared library.

    Raises:
        BackendUnavailableError: it is missing, cannot be loaded, or was built from other sources.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise BackendUnavailableError(
                f"the native CPU library {path} was not built.",
                hint="Install a C++17 compiler (g++ or clang++) and install luma-state again.",
            )
        try:
            self._library = ctypes.CDLL(str(path))
            found = self._library.luma_interface_version()
        except (OSError, AttributeError) as error:
            raise BackendUnavailableError(
                f"the native CPU library {path} cannot be loaded: {error}.",
                hint="Install luma-state again.",
            ) from error
        if found != INTERFACE_VERSION:
            raise BackendUnavailableError(
                f"the native CPU library {path} has interface {found} and must have "
                f"{INTERFACE_VERSION}.",
                hint="It is left over from another version: install luma-state again.",
            )
        self._declare()
        self.threading: str = self._library.luma_threading().decode()
        self._sets = {
            self._library.luma_instruction_set_name(index).decode(): index
            for index in range(self._library.luma_instruction_sets())
            if self._library.luma_instruction_set_runs_here(index)
        }
        self.instruction_sets = tuple(self._sets)
        self._default = self.instruction_sets[-1]
        count = self._library.luma_instances(None, 0)
        rows = (Instance * count)()
        self._library.luma_instances(rows, count)
        self.instances = frozenset(
            (row.rule, row.first, row.second, bool(row.whole)) for row in rows
        )
        """Rule, kinds of both moments, and whether of one scale for the whole tensor."""

    def use_instruction_set(self, name: str | None) -> None:
        """Choose the build that is used where none is named; ``None`` chooses the fastest."""
        self._index(name)
        self._default = self.instruction_sets[-1] if name is None else name

    def steps(
        self, steps: Sequence[Step], threads: int, instruction_set: str | None = None
    ) -> list[int]:
        """Take the steps of parameters, one after another.

        Args:
            steps: what they are; nothing changes if there is no kernel of one of them.
            threads: the most that one step may use.
            instruction_set: one of the library's; the fastest by default.

        Returns:
            of each, the number of blocks or segments whose new moments were not all finite.

        Raises:
            BackendUnavailableError: the library has no kernel of a step.
        """
        index, count = self._index(instruction_set), len(steps)
        array = steps if isinstance(steps, ctypes.Array) else (Step * count)(*steps)
        bad = (c_int64 * count)()
        unknown = self._library.luma_steps(array, count, bad, index, threads)
        if unknown:
            step = steps[unknown - 1]
            whole = "one scale for the whole tensor" if not step.layout.block else "blocks"
            raise _no_kernel(
                f"of rule {step.rule} with moments of kinds {step.first.kind} and "
                f"{step.second.kind}, {step.first.bits} and {step.second.bits} bits, with {whole}"
            )
        return list(bad)

    def square_digits(
        self, squares: Squares, digits: Tensor, threads: int, instruction_set: str | None = None
    ) -> None:
        """Add the digits of a sum of squares to int64 ``digits``."""
        index = self._index(instruction_set)
        self._library.luma_square_digits(ctypes.byref(squares), address(digits), index, threads)

    def encode(self, coding: Coding, threads: int, instruction_set: str | None = None) -> None:
        """Encode one moment.

        Raises:
            BackendUnavailableError: the library has no kernel of how it is stored.
        """
        index = self._index(instruction_set)
        if self._library.luma_encode(ctypes.byref(coding), index, threads):
            raise _no_kernel_of_coding(coding)

    def decode(self, coding: Coding, threads: int, instruction_set: str | None = None) -> None:
        """Decode one moment.

        Raises:
            BackendUnavailableError: the library has no kernel of how it is stored.
        """
        index = self._index(instruction_set)
        if self._library.luma_decode(ctypes.byref(coding), index, threads):
            raise _no_kernel_of_coding(coding)

    def summarize(self, summary: Structure, instruction_set: str | None = None) -> None:
        """Add up what statistics need of a run of values."""
        self._library.luma_summarize(ctypes.byref(summary), self._index(instruction_set))

    def count_codes(
        self, codes: int, count: int, counts: int, instruction_set: str | None = None
    ) -> None:
        """Count 16-bit codes at one address into uint32 counts at another."""
        self._library.luma_count_codes(codes, count, counts, self._index(instruction_set))

    def _index(self, instruction_set: str | None) -> int:
        name = self._default if instruction_set is None else instruction_set
        if name not in self._sets:
            raise BackendUnavailableError(
                f"instruction_set={name!r} does not run here; it must be one of "
                f"{', '.join(map(repr, self.instruction_sets))}."
            )
        return self._sets[name]

    def _declare(self) -> None:
        library = self._library
        library.luma_instruction_sets.restype = c_int32
        library.luma_instruction_set_name.argtypes = [c_int32]
        library.luma_instruction_set_name.restype = c_char_p
        library.luma_instruction_set_runs_here.argtypes = [c_int32]
        library.luma_instruction_set_runs_here.restype = c_int32
        library.luma_threading.restype = c_char_p
        library.luma_instances.argtypes = [c_void_p, c_int32]
        library.luma_instances.restype = c_int32
        library.luma_steps.argtypes = [POINTER(Step), c_int64, c_void_p, c_int32, c_int32]
        library.luma_steps.restype = c_int64
        library.luma_square_digits.argtypes = [POINTER(Squares), c_void_p, c_int32, c_int32]
        library.luma_square_digits.restype = None
        library.luma_summarize.argtypes = [c_void_p, c_int32]
        library.luma_summarize.restype = None
        library.luma_count_codes.argtypes = [c_void_p, c_int64, c_void_p, c_int32]
        library.luma_count_codes.restype = None
        for function in (library.luma_encode, library.luma_decode):
            function.argtypes = [POINTER(Coding), c_int32, c_int32]
            function.restype = c_int32


def _no_kernel(what: str) -> BackendUnavailableError:
    return BackendUnavailableError(
        f"the native CPU library has no kernel {what}.",
        hint="Use backend='auto', which takes PyTorch's slower path, or a codec of `luma doctor`.",
    )


def _no_kernel_of_coding(coding: Coding) -> BackendUnavailableError:
    stored = coding.stored
    return _no_kernel(f"that codes a moment of kind {stored.kind} in {stored.bits} bits")


@cache
def native_library() -> NativeLibrary:
    """Return the library, loaded once.

    Raises:
        BackendUnavailableError: says why it cannot be used.
    """
    return NativeLibrary(LIBRARY_PATH)


def use_instruction_set(name: str | None) -> None:
    """Let steps and codecs of this process use one instruction set, to compare or to reproduce.

    Results do not depend on it.

    Args:
        name: one of `NativeStatus.instruction_sets`; ``None`` returns to the fastest.

    Raises:
        BackendUnavailableError: there is no library, or it has no such instruction set here.
    """
    native_library().use_instruction_set(name)


def native_status() -> NativeStatus:
    """Return whether the library can be used; never raises."""
    try:
        library = native_library()
    except BackendUnavailableError as error:
        return NativeStatus(False, str(error), str(LIBRARY_PATH), (), "")
    return NativeStatus(
        True, "", str(LIBRARY_PATH), tuple(library.instruction_sets), library.threading
    )
