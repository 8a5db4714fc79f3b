"""TurboAdam: AdamW whose two moments take a few bits per parameter."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any, ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT

from luma_core.codecs import FP32, MIN_COMPRESS_ELEMENTS, Codec, CoStateM, LogV, RootV, TableM
from luma_core.errors import ConfigurationError
from luma_core.optim.adamw_state import AdamWStateOptimizer
from luma_core.optim.offload import DEFAULT_BUFFER_BYTES, offload_options
from luma_core.optim.options import check_codecs
from luma_core.rules import AdamWRule, Rule

TURBO_PRESETS: dict[str, dict[str, Any]] = {
    "5bit": {"m_bits": 3, "v_bits": 2, "v_floor": 0.25},
    "8bit": {"m_bits": 3, "v_bits": 5, "v_floor": None},
}
"""What the presets stand for; see docs/turbo-adam.md for what was measured with each."""

SCALE_RISE = 64
"""How far the scale of `RootV` may rise in a step: half an octave. ``benchmarks/stall.py`` measures
what it is for."""


def turbo_codecs(
    *,
    preset: str = "5bit",
    m_codec: str = "table",
    m_bits: int | None = None,
    v_bits: int | None = None,
    v_floor: float | str | None = "preset",
    compress_m: bool = True,
    compress_v: bool = True,
    block_size: int = 128,
    min_m_compress_elements: int = 4096,
    null_pct: float = 0.10,
    amp_pct: float = 0.90,
    feedback: float = 0.0,
) -> dict[str, dict[str, Any]]:
    """Return TurboAdam's codec configuration by moment.

    Args:
        preset: one of ``TURBO_PRESETS``; the options that follow replace parts of it.
        m_codec: ``"table"`` (`TableM`) or ``"costate"`` (`CoStateM`).
        m_bits: size of a code of the first moment under ``m_codec="table"``.
        v_bits: size of a code of the second moment.
        v_floor: the lowest share of a block's largest ``sqrt(v)`` that an element is taken for
            (`RootV`), or ``None`` for a logarithmic grid that keeps the spread (`LogV`).
        compress_m: whether the first moment is compressed; if not, it stays in float32.
        compress_v: likewise for the second.
        block_size: elements per scale block, a multiple of 8.
        min_m_compress_elements: tensors with fewer elements keep their first moment in float32.
        null_pct: with `CoStateM`, the share of blocks that decode to zero.
        amp_pct: with `CoStateM`, the share of blocks without a scale of their own.
        feedback: with `CoStateM`, the share of the coding error that is carried on.

    Raises:
        ConfigurationError: an option cannot work.
    """
    if not isinstance(preset, str) or preset not in TURBO_PRESETS:
        raise ConfigurationError(
            f"preset={preset!r} must be one of {', '.join(map(repr, TURBO_PRESETS))}."
        )
    chosen = dict(TURBO_PRESETS[preset])
    given = {"m_bits": m_bits, "v_bits": v_bits}
    chosen.update({name: value for name, value in given.items() if value is not None})
    if v_floor != "preset":
        chosen["v_floor"] = v_floor
    m: Codec = FP32(block_size=block_size)
    v: Codec = FP32(block_size=block_size)
    _check_m_codec(m_codec, m_bits, feedback)
    if compress_m and m_codec == "costate":
        m = CoStateM(
            block_size=block_size,
            min_elements=min_m_compress_elements,
            null_pct=null_pct,
            amp_pct=amp_pct,
            feedback=feedback,
        )
    elif compress_m:
        m = TableM(
            block_size=block_size, bits=chosen["m_bits"], min_elements=min_m_compress_elements
        )
    if compress_v and chosen["v_floor"] is None:
        v = LogV(block_size=block_size, bits=chosen["v_bits"])
    elif compress_v:
        v = RootV(
            block_size=block_size, bits=chosen["v_bits"], floor=chosen["v_floor"], rise=SCALE_RISE
        )
    return {"exp_avg": m.to_dict(), "exp_avg_sq": v.to_dict()}


def _check_m_codec(m_codec: str, m_bits: int | None, feedback: float) -> None:
    if m_codec not in ("table", "costate"):
        raise ConfigurationError(f"m_codec={m_codec!r} must be 'table' or 'costate'.")
    if m_codec == "costate" and m_bits is not None:
        raise ConfigurationError(
            f"m_bits={m_bits!r} has no meaning with m_codec='costate', which takes one bit.",
            hint="Leave m_bits out, or use m_codec='table'.",
        )
    if m_codec == "table" and feedback:
        raise ConfigurationError(
            "error_feedback=True needs m_codec='costate'; the table keeps no error.",
            hint="Leave error_feedback out, or use m_codec='costate'.",
        )


class TurboAdam(AdamWStateOptimizer):
    """AdamW with its state in about 5.3 bits per parameter, packed, instead of 64.

    The first moment is kept as the nearest of a few levels relative to its block (`TableM`), the
    second with stochastic rounding, on a grid with a floor (`RootV`) or on a logarithmic one that
    keeps its spread (`LogV`). Where a moment is kept so coarsely, an element moves by at most twice
    what Adam would move it after a single large gradient.

    Options that are not listed here, and the errors, are those of `LUMA`.

    Args:
        params: parameters, parameter groups, or ``model.named_parameters()``. A group may set any
            option below but ``backend`` for itself.
        lr: learning rate, a number or a tensor of one element.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay.
        preset: ``"5bit"``, or ``"8bit"`` for state that keeps the second moment's spread.
        m_codec: ``"table"``, or ``"costate"`` for one bit of the first moment (`CoStateM`).
        m_bits: bits of a code of the first moment: 2, 3, 4, 5, 6 or 8; not with ``"costate"``.
        v_bits: bits of a code of the second moment: 2, 3, 4, 5, 6 or 8.
        v_floor: the lowest share of a block's largest ``sqrt(v)`` that an element is taken for, or
            ``None`` for a logarithmic grid without such a floor.
        compress_m: whether the first moment is compressed; if not, it stays in float32.
        compress_v: likewise for the second.
        block_size: elements per scale block, a multiple of 8; blocks restart at each row.
        min_m_compress_elements: tensors with fewer elements keep their first moment in float32.
        null_pct: with ``"costate"``, the share of blocks, of the lowest energy, taken for zero.
        amp_pct: with ``"costate"``, the share of blocks that have no scale of their own.
        error_feedback: with ``"costate"``, keep what coding loses, in 16 more bits per parameter,
            and carry ``betas[0]`` times it into the next step.
        codecs: the codec of each moment outright, as ``codec.to_dict()`` returns it, in place of
            all of the above.
    """

    algorithm: ClassVar[str] = "turbo_adam"
    codec_options: ClassVar[tuple[str, ...]] = (
        "preset",
        "m_codec",
        "m_bits",
        "v_bits",
        "v_floor",
        "compress_m",
        "compress_v",
        "block_size",
        "min_m_compress_elements",
        "null_pct",
        "amp_pct",
        "error_feedback",
    )
    rule: ClassVar[Rule] = AdamWRule()

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        preset: str = "5bit",
        m_codec: str = "table",
        m_bits: int | None = None,
        v_bits: int | None = None,
        v_floor: float | str | None = "preset",
        compress_m: bool = True,
        compress_v: bool = True,
        block_size: int = 128,
        min_m_compress_elements: int = 4096,
        null_pct: float = 0.10,
        amp_pct: float = 0.90,
        error_feedback: bool = False,
        codecs: Mapping[str, Mapping[str, Any]] | None = None,
        backend: str = "auto",
        min_compress_elements: int = MIN_COMPRESS_ELEMENTS,
        stochastic_rounding: bool = True,
        nonfinite: str = "skip",
        maximize: bool = False,
        capturable: bool = False,
        amsgrad: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        differentiable: bool = False,
        seed: int | str | None = None,
        offload: str | None = None,
        offload_directory: str | PathLike[str] | None = None,
        offload_buffer_bytes: int = DEFAULT_BUFFER_BYTES,
    ) -> None:
        self._storage = {
            "preset": preset,
            "m_codec": m_codec,
            "m_bits": m_bits,
            "v_bits": v_bits,
            "v_floor": v_floor,
            "compress_m": compress_m,
            "compress_v": compress_v,
            "block_size": block_size,
            "min_m_compress_elements": min_m_compress_elements,
            "null_pct": null_pct,
            "amp_pct": amp_pct,
            "error_feedback": error_feedback,
        }
        if codecs is not None:
            check_codecs(codecs, self.rule.moments)
        self._codecs = codecs
        kept = offload_options(offload, offload_directory, offload_buffer_bytes)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "min_compress_elements": min_compress_elements,
            "stochastic_rounding": stochastic_rounding,
            "nonfinite": nonfinite,
            "maximize": maximize,
            "capturable": capturable,
            "amsgrad": amsgrad,
            "foreach": foreach,
            "fused": fused,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults, backend=backend, seed=seed, offload=kept)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_storage": self._storage, "_codecs": self._codecs}

    def group_codecs(self, group: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the codec configuration of each moment for a new group's options."""
        own = {name: group[name] for name in self._storage if name in group}
        if self._codecs is not None and not own:
            return {moment: dict(config) for moment, config in self._codecs.items()}
        options = {**self._storage, **own}
        feedback = options.pop("error_feedback")
        if not isinstance(feedback, bool):
            raise ConfigurationError(f"error_feedback={feedback!r} must be True or False.")
        return turbo_codecs(**options, feedback=float(group["betas"][0]) if feedback else 0.0)
