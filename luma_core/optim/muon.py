"""Muon: matrices move by their momentum made orthogonal, all else by AdamW."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

from torch import Tensor
from torch.optim.optimizer import ParamsT

from luma_core.codecs import FP32, Partition, SegmentMean, TableM, codec_from_dict
from luma_core.codecs.table_m import power_levels
from luma_core.errors import ConfigurationError
from luma_core.optim.base import CompressedOptimizer
from luma_core.optim.common_options import CommonKeywords, show_common_options
from luma_core.optim.muon_groups import (
    MuonRow,
    MuonTable,
    algorithm_of,
    assign,
    check_matrix,
    check_overrides,
    check_split,
)
from luma_core.optim.options import group_of
from luma_core.optim.presets import DEFAULT_BLOCK_SIZE, CodecChoice, CodecConfigs
from luma_core.optim.state_io.muon_source import export_muon_state, import_muon_state
from luma_core.rules import Rule
from luma_core.rules.adamw import MOMENTS
from luma_core.rules.muon import MOMENTUM, NEURON_VARIANCE, MuonRule
from luma_core.rules.newton_schulz import Matrices
from luma_core.state import LoadReport

_MATRIX_BITS = {"8bit": 8}
"""Bits of a momentum under presets that are called after the bits of AdamW's two moments."""

_LEVEL_POWER = 2.0
"""How much denser levels are near zero; see docs/muon.md for what was measured."""


@show_common_options
class Muon(CompressedOptimizer):
    """Muon (Jordan et al., 2024) with its momentum in any codec; by default 2.01 bytes a parameter.

    The momentum of a matrix is made orthogonal by Newton-Schulz iterations, so that all directions
    move alike. Embeddings, the output layer, routers and vectors are stepped by AdamW, in groups of
    their own: which are which follows from names and shapes, unless groups say it (``use_muon``,
    or ``algorithm`` of ``"muon"`` or ``"adamw"``). ``table`` shows it; print it once for a new kind
    of model. Without names, all matrices are Muon's. A group with parameters of both kinds is made
    two.

    Three dimensions are a batch of matrices (experts); of more, all but the first are one. A matrix
    of one row or column is made of length 1. Where several processes have parts of a matrix, its
    momentum is cut like it, and the matrix comes to one of them in 16 bits per element.

    Args:
        params: parameters, parameter groups, or ``model.named_parameters()``. A group may set any
            option below but ``backend`` and those of the second list for itself.
        lr: learning rate, a number or a tensor of one element.
        weight_decay: decoupled weight decay.
        momentum: decay rate of the momentum.
        nesterov: whether the gradient is mixed in once more.
        adamw_params: parameters or groups that AdamW steps; all ``params`` are then Muon's.
        overrides: ``"muon"`` or ``"adamw"`` by name pattern, such as ``"*.gate.*"``.
        ns_coefficients: of the iterations: ``"keller"`` (5 steps), ``"polar_express"`` (5),
            ``"deepseek"`` (10), or a list of three numbers for each step.
        ns_steps: number of steps, where it is not the usual one; the last numbers are repeated.
        ns_eps: what the norm of a matrix is taken for at least.
        ns_dtype: of the matrix products: ``"bfloat16"``, ``"float32"``, or ``"auto"``: bfloat16 on
            GPUs.
        adjust_lr_fn: how far a matrix of ``[rows, cols]`` moves: ``"match_rms_adamw"`` by
            ``0.2 * sqrt(max(rows, cols))`` times ``lr``, so that AdamW's rates fit; ``"original"``
            by ``sqrt(max(1, rows / cols))``; ``"spectral"`` by ``sqrt(max(rows, cols))``;
            ``"unit_rms_norm"`` by ``sqrt(rows / cols)``.
        split_rows: rows of what is a matrix of its own, such as one head of fused projections.
        neuron_beta2: decay rate of a variance of each row, by which rows are evened out (NorMuon);
            ``None`` for none.
        betas: of AdamW: decay rates of its two moments.
        eps: of AdamW: added to the root of its second moment.
        adamw_lr: of AdamW's groups that set none; ``lr`` by default.
        adamw_weight_decay: likewise.
        codec: how moments are stored: a preset as `AdamW` takes it, or a mapping of
            ``"momentum_buffer"``, ``"exp_avg"`` and ``"exp_avg_sq"``, or some of them, to codecs.
            ``"8bit"`` is 8 bits for the momentum, and about 8 for AdamW's two moments together.
        block_size: elements per scale of codecs given by name.

    Raises:
        ConfigurationError: an option cannot work.
        StorageError: as in `AdamW`.
        UnsupportedParameterError: as in `AdamW`, or Muon was told to step what is no matrix, or a
            parameter is a flat one of FSDP1.
    """

    algorithm: str = "muon"
    rule: ClassVar[Rule] = MuonRule()
    elementwise: ClassVar[bool] = False

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        *,
        adamw_params: ParamsT | None = None,
        overrides: Mapping[str, str] | None = None,
        ns_coefficients: str | Sequence[Sequence[float]] = "keller",
        ns_steps: int | None = None,
        ns_eps: float = 1e-7,
        ns_dtype: str = "auto",
        adjust_lr_fn: str = "match_rms_adamw",
        split_rows: int | None = None,
        neuron_beta2: float | None = None,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        adamw_lr: float | Tensor | None = None,
        adamw_weight_decay: float | None = None,
        codec: CodecChoice = "luma16",
        block_size: int | None = DEFAULT_BLOCK_SIZE,
        **common: Unpack[CommonKeywords],
    ) -> None:
        self._overrides = dict(overrides or {})
        check_overrides(self._overrides)
        of_adamw = {"lr": adamw_lr, "weight_decay": adamw_weight_decay}
        self._of_adamw = {key: value for key, value in of_adamw.items() if value is not None}
        self._rows: dict[str, MuonRow] = {}
        own = {
            "lr": lr,
            "weight_decay": weight_decay,
            "use_muon": True,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "ns_steps": ns_steps,
            "ns_eps": ns_eps,
            "ns_dtype": ns_dtype,
            "adjust_lr_fn": adjust_lr_fn,
            "split_rows": split_rows,
            "neuron_beta2": neuron_beta2,
            "betas": betas,
            "eps": eps,
        }
        if adamw_params is not None:
            params = [*_groups(params, use_muon=True), *_groups(adamw_params, use_muon=False)]
        storage = {"codec": codec, "block_size": block_size}
        super().__init__(params, own, storage=storage, **common)

    def __getstate__(self) -> dict[str, Any]:
        own = ("_overrides", "_of_adamw", "_rows")
        return {**super().__getstate__(), **{key: getattr(self, key) for key in own}}

    @property
    def table(self) -> MuonTable:
        """What steps each parameter, in the optimizer's order, and why."""
        rows = []
        for name, param, group in self.parameters_by_name():
            algorithm = "muon" if group["use_muon"] else "adamw"
            row = self._rows.get(name)
            if row is None or row.algorithm != algorithm:
                row = MuonRow(name, tuple(param.shape), algorithm, "the loaded state")
            rows.append(row)
        return MuonTable(tuple(rows))

    def export_muon_state(self, layout: str = "torch") -> list[dict[str, Any]]:
        """Return the state as another program's ``state_dict()`` would, in float32.

        Args:
            layout: ``"torch"``: two state dicts, of ``torch.optim.Muon`` and ``torch.optim.AdamW``;
                ``"keller"``, ``"moonlight"``, ``"dion"``: one. The last two keep the momentum
                ``1 / (1 - momentum)`` times as large.

        Raises:
            ConfigurationError: there is no such layout.
            ConversionError: it has no ``adjust_lr_fn`` of a group's.
        """
        return export_muon_state(self, layout)

    def import_muon_state(
        self,
        state_dicts: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        layout: str | None = None,
        strict: bool = True,
    ) -> LoadReport:
        """Replace the state by that of another program's Muon, coded by rounding to nearest.

        Groups adopt the rates and options that both have, and the other's scale by shape, so that
        its learning rates mean the same here. Parameters are matched by name where both sides have
        names, else by position. Under a momentum that changes, a sum is taken for one under the
        momentum that the group has now.

        Args:
            state_dicts: what its ``state_dict()`` returned, or those of ``torch.optim.Muon`` and of
                the ``AdamW`` beside it.
            layout: as `export_muon_state` takes it; ``None`` finds it from the groups' options.
            strict: as `load_state_dict` takes it.

        Raises:
            ConversionError: the layout cannot be told, or it is not state of that layout; nothing
                was changed.
            StateMismatchError: groups, names or shapes do not fit; nothing was changed.
        """
        self.forget_steps()
        return import_muon_state(self, state_dicts, layout=layout, strict=strict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, or two where it has parameters of both kinds.

        Raises:
            ConfigurationError: an option cannot work; the optimizer is unchanged.
            UnsupportedParameterError: a parameter cannot be stepped; the optimizer is unchanged.
        """
        group = group_of(param_group)
        told = algorithm_of(group)
        group.pop("algorithm", None)
        start = len(self.parameter_names())
        rows: list[MuonRow] = []
        parts: dict[str, list[Any]] = {"muon": [], "adamw": []}
        for index, item in enumerate(group["params"], start=start):
            name, param = item if isinstance(item, tuple) else (f"param.{index}", item)
            row = self._row(name, param, told)
            rows.append(row)
            parts[row.algorithm].append(item)
        count = len(self.param_groups)
        kinds = [kind for kind, items in parts.items() if items] or [told or "muon"]
        try:
            for kind in kinds:
                self._add_group({**group, "params": parts[kind], "use_muon": kind == "muon"})
        except Exception:
            del self.param_groups[count:]
            self.forget_names()
            raise
        self._rows.update((row.name, row) for row in rows)

    def _row(self, name: str, param: Any, told: str | None) -> MuonRow:
        if not isinstance(param, Tensor):  # PyTorch refuses it.
            return MuonRow(name, (), told or "adamw", "")
        if told is None:
            return assign(name, param, self._overrides)
        if told == "muon":
            check_matrix(name, param)
        shape = tuple(assign(name, param, {}).shape)
        return MuonRow(name, shape, told, f"use_muon={told == 'muon'}")

    def _add_group(self, group: dict[str, Any]) -> None:
        options = {**self.defaults, **group}
        if not group["use_muon"]:
            super().add_param_group({**self._of_adamw, **group})
            return
        own: dict[str, Any] = {}
        for index, item in enumerate(group["params"], start=len(self.parameter_names())):
            name, param = item if isinstance(item, tuple) else (f"param.{index}", item)
            check_split(name, param, options["split_rows"])
            if options["neuron_beta2"] is not None:
                cut = Partition.vectors(Matrices().of(tuple(param.shape)))
                own[name] = {NEURON_VARIANCE: SegmentMean(partition=cut).to_dict()}
        if own:
            group = {**group, "parameter_codecs": own}
        super().add_param_group(group)

    def _of_rule(self, chosen: Mapping[str, Any], options: Mapping[str, Any]) -> CodecChoice:
        """Return what a mapping says of the moments of a group's rule; the default if nothing."""
        known = {MOMENTUM, NEURON_VARIANCE, *MOMENTS}
        if not set(chosen) <= known:
            return chosen
        names = self.rule.for_group(options).moment_names
        mine = {name: chosen[name] for name in names if name in chosen}
        if MOMENTUM in mine and NEURON_VARIANCE in names:
            mine[NEURON_VARIANCE] = "fp32"
        return mine or "luma16"

    def group_codecs(self, group: Mapping[str, Any]) -> CodecConfigs:
        """Return the codec configuration of each moment for a new group's options.

        Raises:
            ConfigurationError: an option cannot work.
        """
        options = {**self.defaults, **group}
        chosen = group.get("codec", self._storage["codec"])
        if isinstance(chosen, Mapping):
            return super().group_codecs({**group, "codec": self._of_rule(chosen, options)})
        found = super().group_codecs(group)
        block_size = codec_from_dict(next(iter(found.values()))).block_size
        if options["use_muon"] and isinstance(chosen, str) and chosen in _MATRIX_BITS:
            bits = _MATRIX_BITS[chosen]
            levels = power_levels(bits, _LEVEL_POWER)
            found[MOMENTUM] = TableM(block_size=block_size, bits=bits, levels=levels).to_dict()
        if NEURON_VARIANCE in found:
            found[NEURON_VARIANCE] = FP32(block_size=block_size).to_dict()
        return found


def _groups(params: ParamsT, *, use_muon: bool) -> list[dict[str, Any]]:
    """Return parameters as groups that say what steps them."""
    items: list[Any] = [params] if isinstance(params, Tensor) else list(params)
    if items and not isinstance(items[0], dict):
        items = [{"params": items}]
    for group in items:
        if algorithm_of(group) not in (None, "muon" if use_muon else "adamw"):
            raise ConfigurationError(
                "adamw_params was given, and a group says otherwise than it.",
                hint="Leave adamw_params out: groups say what steps them.",
            )
    return [{**group, "use_muon": use_muon} for group in items]
