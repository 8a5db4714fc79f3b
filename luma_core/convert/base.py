"""Conversion between formats of optimizer state: what a source yields and a sink consumes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypedDict

from luma_core import catalog
from luma_core.errors import ConversionError
from luma_core.rules.registry import rule_of
from luma_core.state import GroupOptions

if TYPE_CHECKING:
    from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps, and with it all formats but our own."""

Url = str | os.PathLike[str]

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in total."""


@dataclass(frozen=True)
class ParameterInfo:
    """What is known of a parameter before its moments are read.

    Attributes:
        name: its fully qualified name, or ``param.<i>`` where it has none.
        shape: its shape.
        dtype: its dtype without ``torch.``; where the format does not keep it, that of its moments.
        group: index of its parameter group.
        step: completed steps.
        has_state: whether it has moments; a parameter that never had a gradient has none.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    group: int
    step: int
    has_state: bool


@dataclass(frozen=True)
class OptimizerState:
    """The moments of one parameter.

    Attributes:
        info: the parameter.
        moments: float32 of its shape, on the CPU, by the names that the update rule gives them.
    """

    info: ParameterInfo
    moments: Mapping[str, Tensor]

    @property
    def exp_avg(self) -> Tensor:
        """First moment."""
        return self.moments["exp_avg"]

    @property
    def exp_avg_sq(self) -> Tensor:
        """Second moment, of algorithms that have one."""
        return self.moments["exp_avg_sq"]


class AdamWState(OptimizerState):
    """The AdamW state of one parameter.

    Args:
        info: the parameter.
        exp_avg: first moment, float32 of its shape, on the CPU.
        exp_avg_sq: second moment, likewise.
    """

    def __init__(self, info: ParameterInfo, exp_avg: Tensor, exp_avg_sq: Tensor) -> None:
        super().__init__(info, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq})


class Source(Protocol):
    """Optimizer state in some format, read one parameter at a time.

    One with an attribute ``algorithm``, a name of `luma_core.catalog`, holds that one's moments;
    one without holds AdamW's.
    """

    @property
    def format(self) -> str:
        """Name of the format."""
        ...

    @property
    def named(self) -> bool:
        """Whether parameters have names of their own."""
        ...

    @property
    def stored_bytes(self) -> int:
        """Size of the state where it is stored."""
        ...

    def groups(self) -> Sequence[GroupOptions]:
        """Return each group's options as plain JSON values.

        ``lr``, ``betas``, ``eps``, ``weight_decay`` and ``maximize`` are always there.
        """
        ...

    def parameters(self) -> Sequence[ParameterInfo]:
        """Return all parameters, group by group."""
        ...

    def read(self, name: str) -> OptimizerState:
        """Return the state of one parameter that has state.

        Raises:
            CorruptCheckpointError: it is not what was written.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """How a conversion is done, beside what goes where; sinks are given them too.

    Attributes:
        model: gives parameters names where the state has none, as for `open_source`; for
            ``"lightning"``, the ``.ckpt`` file to write a copy of; for ``"deepspeed-universal"``,
            the weights that go with the state.
        overwrite: whether to replace what is at the destination.
        codec: for ``"luma"``: how moments are kept. ``"luma16"``, ``"fp32"`` and ``"bf16"`` make
            a checkpoint for `LUMA`, ``"turbo"`` and ``"turbo-8bit"`` one for `TurboAdam`.
        block_size: for ``"luma"``: elements per scale, or None for one scale per tensor.
        compression: for ``"luma"``: ``"zstd"`` or ``"none"``.
        seed: for ``"luma"``: of the rounding noise of later steps.
    """

    model: Url | None = None
    overwrite: bool = False
    codec: str = catalog.DEFAULT_TARGET
    block_size: int | None = 128
    compression: str = "zstd"
    seed: int = 0


class ConvertKeywords(TypedDict, total=False):
    """The fields of `ConvertOptions`, for type checkers: a test compares both."""

    model: Url | None
    overwrite: bool
    codec: str
    block_size: int | None
    compression: str
    seed: int


@dataclass(frozen=True)
class MomentError:
    """What coding changed in one moment, or in the update, over all parameters.

    Large values outweigh small ones in the first two, so the counts tell what those hide.

    Attributes:
        relative_rms: root mean square of the errors over that of the values.
        relative_max: the largest, over all parameters, of a parameter's largest error over its
            largest magnitude.
        elements: elements compared.
        zeroed: those that were not 0 and are.
        changed: those that changed by more than a tenth of their value, with those that became 0.
    """

    relative_rms: float = 0.0
    relative_max: float = 0.0
    elements: int = 0
    zeroed: int = 0
    changed: int = 0


@dataclass(frozen=True)
class Written:
    """What a sink did.

    Attributes:
        stored_bytes: size of what was written.
        errors: what coding changed, by moment; nothing where float32 is written.
        update: what it changed in the update that the rule makes of them, for AdamW
            ``m_hat / (sqrt(v_hat) + eps)``; likewise.
    """

    stored_bytes: int
    errors: Mapping[str, MomentError] = field(
        default_factory=lambda: dict.fromkeys(MOMENTS, MomentError())
    )
    update: MomentError = field(default_factory=MomentError)


class Sink(Protocol):
    """Writes optimizer state in some format."""

    def __call__(
        self,
        source: Source,
        destination: Url,
        options: ConvertOptions,
        progress: Progress | None,
        /,
    ) -> Written:
        """Write all of ``source`` and return the size of what was written, and its errors.

        Raises:
            CheckpointExistsError: something is there and may not be overwritten.
            ConversionError: the format cannot hold that state.
            StorageError: the store failed; what was there before is whole.
        """
        ...


def algorithm_of(source: Source) -> str:
    """Return the name of the algorithm whose moments a source holds."""
    return str(getattr(source, "algorithm", "adamw"))


def require_adamw(source: Source, format: str) -> None:
    """Check that a source has AdamW's two moments, for a format that holds nothing else.

    Raises:
        ConversionError: it is the state of another rule.
    """
    rule = rule_of(algorithm_of(source))
    if rule is not None and rule.moment_names != MOMENTS:
        raise ConversionError(
            f"the format {format!r} holds AdamW's {' and '.join(MOMENTS)}; the source is state of "
            f"{algorithm_of(source)!r}, which has {' and '.join(rule.moment_names)}.",
            hint="Convert it to a LUMA checkpoint, in any codec: to='luma'.",
        )


def total_elements(parameters: Sequence[ParameterInfo]) -> int:
    """Return the number of elements of all parameters."""
    total = 0
    for info in parameters:
        elements = 1
        for size in info.shape:
            elements *= size
        total += elements
    return total
