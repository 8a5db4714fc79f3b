"""Adam-mini: AdamW that keeps one second moment for each Hessian block."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Unpack

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import ParamsT

from luma_core.carried import whole_fields
from luma_core.codecs import (
    BF16,
    FP8E4M3,
    FP32,
    Codec,
    Luma16M,
    SegmentMean,
    codec_from_dict,
)
from luma_core.errors import ConfigurationError, UnknownCodecError
from luma_core.optim.adamw_state import AdamWStateOptimizer
from luma_core.optim.common_options import CommonKeywords, show_common_options
from luma_core.optim.options import group_of, is_steppable
from luma_core.optim.presets import (
    DEFAULT_BLOCK_SIZE,
    CodecChoice,
    CodecConfigs,
    preset_codecs,
    stores,
)
from luma_core.optim.telemetry import ParameterTelemetry, measure
from luma_core.partition import (
    Overrides,
    Partition,
    PartitionRow,
    PartitionTable,
    partition_model,
    partition_names,
)
from luma_core.rules import AdamMiniRule, Rule
from luma_core.sharding import local_tensor, part_of
from luma_core.state import field_key

M_CODECS: dict[str, type[Codec]] = {
    "fp32": FP32,
    "bf16": BF16,
    "fp8": FP8E4M3,
    "luma16": Luma16M,
}
"""What ``m_dtype`` may name."""

DEFAULT_M_DTYPE = "bf16"

NamedParameters = Sequence[tuple[str, Tensor]]


def first_moment_codec(m_dtype: str | Mapping[str, Any], *, block_size: int | None) -> Codec:
    """Return the codec of the first moment.

    Args:
        m_dtype: one of ``M_CODECS``, or what a codec's `to_dict` returned.
        block_size: elements per scale of a codec given by name.

    Raises:
        ConfigurationError: it is neither, or a codec that cannot store signed values tile by tile.
    """
    if isinstance(m_dtype, Mapping):
        codec = codec_from_dict(m_dtype)
        if not stores(type(codec), "signed"):
            raise ConfigurationError(
                f"m_dtype={dict(m_dtype)!r} must be a codec of first moments; {codec.name!r} is "
                "one of second moments."
            )
        return codec
    if not isinstance(m_dtype, str) or m_dtype not in M_CODECS:
        raise UnknownCodecError(
            f"m_dtype={m_dtype!r} must be one of {', '.join(map(repr, M_CODECS))}.",
            hint="Or what a codec's to_dict() returns.",
        )
    return M_CODECS[m_dtype](block_size=block_size)


@show_common_options
class AdamMini(AdamWStateOptimizer):
    """Adam-mini (Zhang et al., 2024): the second moment is one float32 per Hessian block.

    A Hessian block (segment) is a query or key head, an output row, an embedded token;
    docs/adam-mini.md says what is cut how. ``nonfinite="skip"`` leaves a segment with a NaN or
    infinite gradient element, or one whose square overflows, as it was. With the first moment in
    bfloat16, state takes a little over 2 bytes per parameter instead of 8.

    Blocks follow from ``model`` where it is given, else from the parameters' names. ``partition``
    holds the table; print it once for a new kind of model. Defaults are those of the official
    implementation, but weight decay is not taken from biases and norms by their names: give them
    a group of their own.

    Args:
        params: ``model.named_parameters()``, or parameters or groups of them where ``model`` is
            given. A group may set any option but ``backend`` and those of the partition.
        lr: learning rate, a number or a tensor of one element.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay.
        model: the model whose modules tell what parameters are and how many heads they have.
        n_heads: query heads; needed without ``model`` where there is attention.
        n_kv_heads: key and value heads; needed without ``model`` where queries, keys and values
            are one matrix and share heads.
        head_dim: rows of one head, where it is not a query projection's rows over ``n_heads``.
        partition: a table made before by `partition_model` or `partition_names`; excludes the four
            options above and ``overrides``.
        overrides: name patterns of parameters to be cut otherwise; see `partition_model`.
        m_dtype: how the first moment is stored: ``"bf16"`` and ``"fp8"`` (E4M3 with a scale per
            block), both rounded stochastically and so without bias; ``"fp32"``; ``"luma16"``; or a
            codec's configuration. All work on every device.
        codec: how the first moment is stored, in the way that every optimizer takes it and in place
            of ``m_dtype``: a name as in `AdamW`, or a mapping of ``"exp_avg"`` alone. The second
            moment is kept as its means.
        block_size: elements per scale of a first moment that has scales.

    Raises:
        ConfigurationError: an option cannot work, or a parameter holds heads and their number is
            not known: the message names the parameter and the missing option.
        StorageError: as in `AdamW`.
        UnsupportedParameterError: as in `AdamW`, or a parameter is a flat one of FSDP1.
    """

    algorithm: str = "adam_mini"
    codec_options: ClassVar[tuple[str, ...]] = ("codec", "m_dtype", "block_size")
    rule: ClassVar[Rule] = AdamMiniRule()
    elementwise: ClassVar[bool] = False

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        model: nn.Module | None = None,
        n_heads: int | None = None,
        n_kv_heads: int | None = None,
        head_dim: int | None = None,
        partition: PartitionTable | None = None,
        overrides: Overrides | None = None,
        m_dtype: str | Mapping[str, Any] = DEFAULT_M_DTYPE,
        codec: CodecChoice | None = None,
        block_size: int | None = DEFAULT_BLOCK_SIZE,
        **common: Unpack[CommonKeywords],
    ) -> None:
        self._geometry = {"n_heads": n_heads, "n_kv_heads": n_kv_heads, "head_dim": head_dim}
        self._overrides: Overrides = overrides or {}
        self._rows: dict[str, PartitionRow] = {}
        self._rows_of: dict[Tensor, PartitionRow] = {}
        groups = _groups(params)
        self._cut(groups, model, partition)
        own = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        storage = {"codec": codec, "m_dtype": m_dtype, "block_size": block_size}
        super().__init__(groups, own, storage=storage, **common)

    def __getstate__(self) -> dict[str, Any]:
        own = ("_geometry", "_overrides", "_rows")
        return {**super().__getstate__(), **{key: getattr(self, key) for key in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._rows_of = {}

    def _cut(
        self,
        groups: Sequence[Mapping[str, Any]],
        model: nn.Module | None,
        partition: PartitionTable | None,
    ) -> None:
        """Find the partition of all parameters that are there from the start."""
        told = [name for name, value in self._geometry.items() if value is not None]
        told += ["model"] * (model is not None) + ["overrides"] * bool(self._overrides)
        if model is not None and not isinstance(model, nn.Module):
            raise ConfigurationError(f"model={model!r} must be a torch.nn.Module.")
        if partition is not None and told:
            raise ConfigurationError(
                f"partition=... excludes {told[0]}: the table says how every parameter is cut."
            )
        if model is not None:
            partition = partition_model(model, **self._geometry, overrides=self._overrides)
            self._rows_of = {
                param: partition[name]
                for name, param in model.named_parameters()
                if name in partition.by_name
            }
        if partition is not None:
            self._rows = dict(partition.by_name)
            return
        named = [
            item
            for group in groups
            for item in group["params"]
            if isinstance(item, tuple) and _is_cut(item[1])
        ]
        self._rows = dict(self._by_names(named, self._overrides).by_name)

    def _by_names(self, named: NamedParameters, overrides: Overrides) -> PartitionTable:
        return partition_names(named, **self._geometry, overrides=overrides)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; its options default to the optimizer's.

        What chooses the first moment's codec (``codec``, ``m_dtype``, ``block_size``) may stand in
        the group too; ``codecs`` gives codecs outright.

        Raises:
            ConfigurationError: an option cannot work, or a parameter's partition is not known; the
                optimizer is unchanged.
            UnsupportedParameterError: a parameter's dtype or layout is not supported.
        """
        group = group_of(param_group)
        group.setdefault("codecs", self.group_codecs(group))
        rows = self._rows_for(group["params"])
        group["parameter_codecs"] = {
            name: {"exp_avg_sq": SegmentMean(partition=row.partition).to_dict()}
            for name, row in rows.items()
            if not row.partition.elementwise
        }
        super().add_param_group(group)
        self._rows.update(rows)

    def _rows_for(self, params: Iterable[Tensor | tuple[str, Tensor]]) -> dict[str, PartitionRow]:
        """Return the row of each parameter of a new group, by its name in this optimizer."""
        start = len(self.parameter_names())
        rows: dict[str, PartitionRow] = {}
        unknown: list[tuple[str, Tensor]] = []
        for index, item in enumerate(params, start=start):
            name, param = item if isinstance(item, tuple) else (f"param.{index}", item)
            if not _is_cut(param):
                continue
            row = self._rows_of.get(param) or self._rows.get(name)
            if row is not None:
                rows[name] = row
            elif not isinstance(item, tuple):
                raise ConfigurationError(
                    f"parameter {index} has no name, and no model tells what it is.",
                    hint="Give model=model, or model.named_parameters() as params.",
                )
            elif self._rows_of and not self._overridden(name):
                raise ConfigurationError(
                    f"parameter {name!r} is not one of model's, neither by itself nor by its name.",
                    hint="Give the model whose parameters these are, or no model but n_heads.",
                )
            else:
                unknown.append(item)
        # Only what concerns new parameters: a pattern that matches nothing is an error.
        overrides = {
            pattern: spec
            for pattern, spec in self._overrides.items()
            if any(fnmatch.fnmatchcase(name, pattern) for name, _ in unknown)
        }
        return {**rows, **self._by_names(unknown, overrides).by_name}

    def _overridden(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self._overrides)

    def group_codecs(self, group: Mapping[str, Any]) -> CodecConfigs:
        """Return the codec configuration of each moment for a new group's options.

        That of the second moment is for parameters cut by element; the others' are in
        ``group["parameter_codecs"]``.

        Raises:
            ConfigurationError: an option cannot work, or ``codec`` and ``m_dtype`` say different
                things.
        """
        chosen = group if group.keys() & {"codec", "m_dtype"} else self._storage
        codec, m_dtype = chosen.get("codec"), chosen.get("m_dtype", DEFAULT_M_DTYPE)
        block_size = group.get("block_size", self._storage["block_size"])
        asked = "block_size" in group or block_size != DEFAULT_BLOCK_SIZE
        if codec is None:
            first = first_moment_codec(m_dtype, block_size=block_size)
        else:
            configs = preset_codecs(
                codec, {"exp_avg": "signed"}, block_size=block_size, given_block_size=asked
            )
            first = codec_from_dict(configs["exp_avg"])
            told = "m_dtype" in group or m_dtype != DEFAULT_M_DTYPE
            if told and first_moment_codec(m_dtype, block_size=block_size) != first:
                raise ConfigurationError(
                    f"codec={codec!r} contradicts m_dtype={m_dtype!r}.", hint="Give one of them."
                )
        second = FP32(block_size=first.block_size)
        return {"exp_avg": first.to_dict(), "exp_avg_sq": second.to_dict()}

    @property
    def partition(self) -> PartitionTable:
        """How the optimizer's parameters are cut, in their order; state that was loaded decides."""
        return PartitionTable(
            tuple(self._row(*item) for item in self.parameters_by_name() if _is_cut(item[1]))
        )

    def _row(self, name: str, param: Tensor, group: dict[str, Any]) -> PartitionRow:
        row = self._rows.get(name)
        second = self.codecs(param, group)["exp_avg_sq"]
        cut = second.partition if isinstance(second, SegmentMean) else None
        if row is not None and (row.partition.elementwise if cut is None else row.partition == cut):
            return row
        shape = tuple(param.shape)
        per = "element" if cut is None else "segment"
        cut = cut or Partition.elements(shape)
        return PartitionRow(name, shape, "loaded", per, "the loaded state", cut)

    def telemetry(self) -> list[ParameterTelemetry]:
        """Return the sizes of the last step's updates and moments, by Hessian block.

        Computed when it is called, from the stored state; a step does nothing for it. Results are
        tensors on the parameters' devices, and nothing waits for a device until one is read.
        Memory: 4 bytes per element of one parameter at a time, and its state where that is sharded
        over processes, which then call this together.
        """
        return [
            measure(name, param, self._whole_state(param, group), self.codecs(param, group), group)
            for name, param, group in self.parameters_by_name()
            if self.state.get(param)
        ]

    def _whole_state(self, param: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[param]
        part = part_of(param)
        if part is None or not part.cut:
            return {key: local_tensor(value) for key, value in state.items()}
        found = dict(state)
        for moment, codec in self.codecs(param, group).items():
            fields = {key: state[field_key(moment, key)] for key in codec.layout(param.shape)}
            whole = whole_fields(part, codec, fields)
            found |= {field_key(moment, key): value for key, value in whole.items()}
        return found


def _is_cut(param: Tensor) -> bool:
    """Return whether a parameter has Hessian blocks: those frozen in other dtypes have none."""
    return not is_lazy(param) and is_steppable(param)


def _groups(params: ParamsT) -> list[dict[str, Any]]:
    """Return parameters as groups whose ``params`` are lists, so that they can be read twice."""
    items: list[Any] = [params] if isinstance(params, Tensor) else list(params)
    if items and not isinstance(items[0], dict):
        return [{"params": items}]
    return [group_of(group) for group in items]
