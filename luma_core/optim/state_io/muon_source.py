"""State of other programs' Muon as a source, and written as they keep it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from luma_core import rounding
from luma_core.codecs import FP32, Codec
from luma_core.errors import ConversionError, StateMismatchError
from luma_core.optim.options import check_options
from luma_core.optim.state_io.entries import check_entry_kind
from luma_core.optim.state_io.interchange import adamw_group, decoded_moment
from luma_core.optim.state_io.loading import load_source
from luma_core.optim.state_io.muon_layouts import (
    Group,
    Layout,
    is_matrix,
    layout_of,
    own_options,
    read_entry,
    written_entry,
    written_group,
)
from luma_core.optim.state_io.owner import StateOwner
from luma_core.optim.state_io.saved_groups import check_parts, group_names, saved_names
from luma_core.optim.state_io.saved_options import FOREIGN_MUON
from luma_core.optim.state_io.sources import OwnParameter, Source
from luma_core.rules.newton_schulz import SCHEDULES
from luma_core.state import LoadReport, ParameterState, field_key

WHAT = "Muon state"
StateDict = Mapping[str, Any]


class MuonSource(Source):
    """What ``state_dict()`` of one or two other optimizers returned: Muon's, and AdamW's beside.

    A group with parameters of both kinds counts as two.

    Raises:
        ConversionError: the layout cannot be told, or it is not what that layout has.
        StateMismatchError: names do not fit.
    """

    def __init__(self, state_dicts: Sequence[StateDict], layout: str | None) -> None:
        members, groups, names = [], [], []
        self._entries: list[tuple[int, dict[str, Tensor]] | None] = []
        told = [group for one in state_dicts for group in one["param_groups"]]
        found = layout_of(told, layout)
        named = True
        for one in state_dicts:
            own_names, has_names = saved_names(one["param_groups"], WHAT, keys=True)
            named = named and has_names
            left = iter(own_names)
            for group in one["param_groups"]:
                rows = [(next(left), one["state"].get(key)) for key in group["params"]]
                for matrix in (True, False):
                    mine = [row for row in rows if is_matrix(found, group, row[1]) is matrix]
                    if not mine and not (matrix and not rows):
                        continue
                    options = own_options(found, group, matrix=matrix)
                    check_options(options)
                    groups.append({**options, "params": [name for name, _ in mine]})
                    members += [len(groups) - 1] * len(mine)
                    names += [name for name, _ in mine]
                    self._entries += [_read(found, group, *row, matrix=matrix) for row in mine]
        if not named:
            names = [f"param.{index}" for index in range(len(names))]
        super().__init__(FOREIGN_MUON, groups, names, members, named=named)

    def has_state(self, index: int) -> bool:
        return self._entries[index] is not None

    def fits(self, index: int, own: OwnParameter) -> bool:
        entry = self._entries[index]
        return entry is None or _shape(entry) == tuple(own[1].shape)

    def codecs(self, index: int, own: OwnParameter) -> Mapping[str, Codec]:
        entry = self._entries[index]
        return {} if entry is None else dict.fromkeys(entry[1], FP32())

    def state(self, index: int, own: OwnParameter) -> ParameterState:
        name, param, group = own
        dtype = str(param.dtype).removeprefix("torch.")
        head = ParameterState(name, tuple(param.shape), dtype, self.members[index])
        entry = self._entries[index]
        if entry is None:
            return head
        if _shape(entry) != head.shape:
            raise StateMismatchError(
                f"{name!r}: its state has shape {list(_shape(entry))}; "
                f"the parameter has {list(head.shape)}."
            )
        return ParameterState(
            name=name,
            shape=head.shape,
            dtype=dtype,
            group=head.group,
            step=entry[0],
            noise_key=rounding.parameter_key(group["seed"], name),
            codecs=self.codecs(index, own),
            fields={field_key(moment, "value"): x for moment, x in entry[1].items()},
        )


def _shape(entry: tuple[int, dict[str, Tensor]]) -> tuple[int, ...]:
    return tuple(next(iter(entry[1].values())).shape)


def _read(
    layout: Layout, group: Group, name: str, entry: Any, *, matrix: bool
) -> tuple[int, dict[str, Tensor]] | None:
    if entry is not None:
        check_entry_kind(name, entry)
    if not entry or set(entry) <= {"use_muon"}:
        return None
    return read_entry(repr(name), layout, group, entry, matrix=matrix)


def import_muon_state(
    optimizer: StateOwner,
    state_dicts: StateDict | Sequence[StateDict],
    *,
    layout: str | None,
    strict: bool,
) -> LoadReport:
    """Implement `Muon.import_muon_state`."""
    given = [state_dicts] if isinstance(state_dicts, Mapping) else list(state_dicts)
    for one in given:
        check_parts(one, WHAT, None)
    return load_source(optimizer, MuonSource(given, layout), strict=strict, quiet=True)


def export_muon_state(optimizer: StateOwner, layout: str) -> list[dict[str, Any]]:
    """Implement `Muon.export_muon_state`."""
    found = layout_of((), layout)
    if found.name != "torch":
        return [_state_dict(optimizer, found, optimizer.param_groups)]
    kinds = (True, False)
    parts = [[g for g in optimizer.param_groups if g["use_muon"] is kind] for kind in kinds]
    return [_state_dict(optimizer, found, groups) for groups in parts]


def _state_dict(
    optimizer: StateOwner, layout: Layout, wanted: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    entries: dict[int, dict[str, Any]] = {}
    groups: list[dict[str, Any]] = []
    states = {state.name: state for state in optimizer.parameter_states()}
    rows = [[row for row in optimizer.parameters_by_name() if row[2] is group] for group in wanted]
    first = 0
    for group, members in zip(wanted, rows, strict=True):
        steps = [0]
        for index, (name, param, _) in enumerate(members, start=first):
            state = states[name]
            if state.codecs:
                moments = {m: decoded_moment(state, m, param) for m in state.codecs}
                entries[index] = written_entry(layout, group, state.step, moments)
                steps.append(state.step)
        written = _group(layout, group, max(steps))
        written["params"] = list(range(first, first + len(members)))
        if (names := group_names(group)) is not None:
            written["param_names"] = list(names)
        groups.append(written)
        first += len(members)
    if layout.name == "moonlight":
        groups = _as_one(groups)
    return {"state": entries, "param_groups": groups}


def _group(layout: Layout, group: Mapping[str, Any], step: int) -> dict[str, Any]:
    if layout.name == "torch" and not group["use_muon"]:
        return adamw_group(group)
    written = written_group(layout, group, step)
    if layout.name == "torch":
        triples = group["ns_coefficients"]
        triples = SCHEDULES[triples] if isinstance(triples, str) else triples
        if any(tuple(triple) != tuple(triples[0]) for triple in triples):
            raise ConversionError(
                f"ns_coefficients={group['ns_coefficients']!r} of a group has several triples; "
                "torch.optim.Muon has one.",
                hint="Write another layout, or build the optimizer with 'keller'.",
            )
        written["ns_coefficients"] = tuple(triples[0])
        written["ns_steps"] = group["ns_steps"] or len(triples)
    if layout.name == "moonlight":
        written["ns_steps"] = group["ns_steps"] or 5
    return written


def _as_one(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return Moonlight's one group of all parameters, with the options of both kinds."""
    found: dict[str, Any] = {}
    for group in reversed(groups):
        found |= group
    found["params"] = [key for group in groups for key in group["params"]]
    if all("param_names" in group for group in groups):
        found["param_names"] = [name for group in groups for name in group["param_names"]]
    return [found]
