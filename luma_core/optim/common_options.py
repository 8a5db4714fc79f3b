"""The options that every optimizer takes after its own: named, described and checked once."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from os import PathLike
from typing import Any, TypedDict, TypeVar

from luma_core.codecs import MIN_COMPRESS_ELEMENTS
from luma_core.keywords import check_keywords, show_keywords, with_keywords
from luma_core.optim.offload import DEFAULT_BUFFER_BYTES, OffloadOptions, offload_options

OptimizerClass = TypeVar("OptimizerClass", bound=type)

_NOT_IN_GROUPS = frozenset(
    {"backend", "seed", "offload", "offload_directory", "offload_buffer_bytes"}
)


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """Options that every optimizer takes by keyword, with equal defaults.

    Attributes:
        backend: ``"auto"`` picks the fastest that runs here; ``"pytorch"``, ``"native"`` (CPU) or
            ``"triton"`` insist.
        min_compress_elements: flat tensors (fewer than two dimensions, or rows of fewer than 32
            elements) below this size keep their moments in float32.
        stochastic_rounding: whether bfloat16 parameters are rounded stochastically, so that updates
            below half a unit in the last place are not lost. float16 is rounded to nearest.
        nonfinite: what a NaN or infinite gradient element does. ``"skip"`` leaves its block (the
            tensor, with ``block_size=None``) untouched for that step and counts it in
            ``state[p]["nonfinite"]``; ``"raise"`` raises before anything changes, at the price of a
            host synchronisation per step; ``"propagate"`` lets it into the block.
        maximize: ascend instead of descend.
        capturable: allow `step` inside a captured CUDA graph. ``lr`` must then be a float32 tensor
            on the parameters' device for changes of it to be seen by the graph's replays.
        amsgrad: as ``torch.optim.AdamW`` has it; must be ``False`` here.
        foreach: as ``torch.optim.AdamW`` has it, without effect: ``backend`` says how to step.
        fused: likewise.
        differentiable: as ``torch.optim.AdamW`` has it; must be ``False`` here.
        seed: of the rounding noise, an integer of 0 or more. ``None`` is 0, so that replicas stay
            bit-identical whatever ``torch.manual_seed`` was given; another one gives other noise.
            ``"torch"`` draws it from torch's global generator, which nothing else does here.
        offload: where state lives if not beside its parameter; see docs/offload.md. ``"host"``:
            in pinned memory of the host, from where it comes to the GPU's step in chunks.
            ``"disk"``: in a file, likewise, also of parameters on the CPU. Both give the bits of
            ``None``. ``"cpu-step"``: in the host's memory, and the CPU steps. ``"auto"`` chooses,
            and logs why.
        offload_directory: where the file is made, of this optimizer alone. ``"disk"`` needs it, and
            ``"auto"`` may use it.
        offload_buffer_bytes: memory for state on its way, of the GPU, or of the host for parameters
            that are there. It grows to twice the state of the largest parameter that cannot be cut.
            With ``"cpu-step"``, memory of the host for parameters and gradients on their way.
    """

    backend: str = "auto"
    min_compress_elements: int = MIN_COMPRESS_ELEMENTS
    stochastic_rounding: bool = True
    nonfinite: str = "skip"
    maximize: bool = False
    capturable: bool = False
    amsgrad: bool = False
    foreach: bool | None = None
    fused: bool | None = None
    differentiable: bool = False
    seed: int | str | None = None
    offload: str | None = None
    offload_directory: str | PathLike[str] | None = None
    offload_buffer_bytes: int = DEFAULT_BUFFER_BYTES

    @classmethod
    def given_to(cls, optimizer: type, keywords: Mapping[str, Any]) -> CommonOptions:
        """Return the options among what an optimizer was given by keyword.

        Raises:
            TypeError: one of them is no option, as Python says it of functions.
        """
        check_keywords(f"{optimizer.__name__}.__init__", cls, keywords)
        return cls(**keywords)

    def of_groups(self) -> dict[str, Any]:
        """Return the options that parameter groups have, as they were given."""
        names = (field.name for field in fields(self) if field.name not in _NOT_IN_GROUPS)
        return {name: getattr(self, name) for name in names}

    def of_offloading(self) -> OffloadOptions | None:
        """Return where state lives, if not beside its parameter.

        Raises:
            ConfigurationError: an option of offloading cannot work.
        """
        return offload_options(self.offload, self.offload_directory, self.offload_buffer_bytes)


class CommonKeywords(TypedDict, total=False):
    """The fields of `CommonOptions`, for type checkers: a test compares both."""

    backend: str
    min_compress_elements: int
    stochastic_rounding: bool
    nonfinite: str
    maximize: bool
    capturable: bool
    amsgrad: bool
    foreach: bool | None
    fused: bool | None
    differentiable: bool
    seed: int | str | None
    offload: str | None
    offload_directory: str | PathLike[str] | None
    offload_buffer_bytes: int


def show_common_options(optimizer: OptimizerClass) -> OptimizerClass:
    """Show the common options in an optimizer's signature and in the Args of its docstring.

    Its ``__init__`` takes them as ``**common: Unpack[CommonKeywords]``. A docstring without Args
    gets those of the class that it derives from.
    """
    init = vars(optimizer).get("__init__")
    if init is not None:
        show_keywords(init, CommonOptions)
    if optimizer.__doc__ is not None:
        text, above = inspect.cleandoc(optimizer.__doc__), optimizer.__base__.__doc__ or ""
        has_args = "\n\nArgs:" in text
        optimizer.__doc__ = with_keywords(text, CommonOptions) if has_args else text + _args(above)
    return optimizer


def _args(text: str) -> str:
    """Return a docstring from its Args on."""
    _, title, rest = text.partition("\n\nArgs:")
    return title + rest
