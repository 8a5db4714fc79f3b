"""TurboAdam: AdamW whose two moments take a few bits per parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

from torch import Tensor
from torch.optim.optimizer import ParamsT

from luma_core.codecs import FP32, Codec, CoStateM, TableM
from luma_core.errors import ConfigurationError
from luma_core.optim.adamw_state import AdamWStateOptimizer
from luma_core.optim.common_options import CommonKeywords, show_common_options
from luma_core.optim.options import check_codecs
from luma_core.optim.presets import (
    MIN_TABLE_ELEMENTS,
    TURBO_PRESETS,
    CodecChoice,
    CodecConfigs,
    few_bits_of_squares,
    moment_kinds,
    preset_codecs,
)
from luma_core.rules import AdamWRule, Rule

_DEFAULTS: dict[str, Any] = {
    "preset": "5bit",
    "m_codec": "table",
    "m_bits": None,
    "v_bits": None,
    "v_floor": "preset",
    "compress_m": True,
    "compress_v": True,
    "block_size": 128,
    "min_m_compress_elements": MIN_TABLE_ELEMENTS,
    "null_pct": 0.10,
    "amp_pct": 0.90,
    "error_feedback": False,
}
"""The keywords of `TurboAdam` that make up its codecs, as they are where they are left out."""


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
    if compress_v:
        v = few_bits_of_squares(chosen["v_bits"], chosen["v_floor"], block_size=block_size)
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


@show_common_options
class TurboAdam(AdamWStateOptimizer):
    """AdamW with its state in about 5.3 bits per parameter, packed, instead of 64.

    The first moment is kept as the nearest of a few levels relative to its block (`TableM`), the
    second with stochastic rounding, on a grid with a floor (`RootV`) or on a logarithmic one that
    keeps its spread (`LogV`). Where a moment is kept so coarsely, an element moves by at most twice
    what Adam would move it after a single large gradient.

    Args:
        params: parameters, parameter groups, or ``model.named_parameters()``. A group may set any
            option below but ``backend`` for itself.
        lr: learning rate, a number or a tensor of one element.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay.
        preset: ``"5bit"``, or ``"8bit"`` for state that keeps the second moment's spread, or
            ``"16bit"`` for finer codes of both moments.
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
        codec: how the moments are stored, as `AdamW` takes it, in place of all of the above but
            ``block_size``. What is given beside it must mean the same.

    Raises:
        ConfigurationError: an option cannot work, or two of them contradict each other.
        StorageError: as in `AdamW`.
        UnsupportedParameterError: as in `AdamW`.
    """

    algorithm: str = "turbo_adam"
    codec_options: ClassVar[tuple[str, ...]] = ("codec", *_DEFAULTS)
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
        codec: CodecChoice | None = None,
        **common: Unpack[CommonKeywords],
    ) -> None:
        storage = {
            "codec": codec,
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
        own = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, own, storage=storage, **common)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_codecs": self._codecs}

    def group_codecs(self, group: Mapping[str, Any]) -> CodecConfigs:
        """Return the codec configuration of each moment for a new group's options.

        Raises:
            ConfigurationError: an option cannot work, or contradicts ``codec``.
        """
        own = {name: group[name] for name in self.codec_options if name in group}
        given = own if own.keys() - {"block_size"} else {**self._given(), **own}
        if given.get("codec") is not None:
            return self._named(given, group)
        if self._codecs is not None and not own:
            return {moment: dict(config) for moment, config in self._codecs.items()}
        return self._of_keywords({**self._storage, **own}, group)

    def _given(self) -> dict[str, Any]:
        """Return the keywords that were given other values than their defaults."""
        defaults = {"codec": None, **_DEFAULTS}
        return {key: value for key, value in self._storage.items() if value != defaults[key]}

    def _named(self, given: Mapping[str, Any], group: Mapping[str, Any]) -> CodecConfigs:
        """Return what ``codec`` says, with which whatever else was given must agree."""
        block_size = given.get("block_size", self._storage["block_size"])
        found = preset_codecs(
            given["codec"],
            moment_kinds(self.rule),
            block_size=block_size,
            given_block_size="block_size" in given,
        )
        others = [name for name in _DEFAULTS if name in given and name != "block_size"]
        keywords = {**_DEFAULTS, "block_size": block_size, **given}
        if others and self._of_keywords(keywords, group) != found:
            raise ConfigurationError(
                f"codec={given['codec']!r} contradicts "
                f"{', '.join(f'{name}={given[name]!r}' for name in others)}.",
                hint="Give one of them.",
            )
        return found

    def _of_keywords(self, options: Mapping[str, Any], group: Mapping[str, Any]) -> CodecConfigs:
        chosen = {name: options[name] for name in _DEFAULTS}
        feedback = chosen.pop("error_feedback")
        if not isinstance(feedback, bool):
            raise ConfigurationError(f"error_feedback={feedback!r} must be True or False.")
        return turbo_codecs(**chosen, feedback=float(group["betas"][0]) if feedback else 0.0)
