"""State of other programs' Muon: how each lays it out, and what its momentum is.

``torch.optim.Muon`` and Jordan's keep an average, ``M = mu M + (1 - mu) g``, as `Muon` does;
Moonlight's and dion's keep a sum, ``M = mu M + g``, which is ``1 / (1 - mu)`` times that. Which one
it is cannot be seen from the values, so it follows from the layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from luma_core.errors import ConfigurationError, ConversionError
from luma_core.optim.state_io.adamw_entry import check_moment_values, checked_parts, scalar
from luma_core.rules.adamw import MOMENTS
from luma_core.rules.muon import MOMENTUM

Group = Mapping[str, Any]
Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Layout:
    """How one program lays out Muon's state.

    Attributes:
        name: what ``layout=`` says.
        sums: whether the momentum is a sum.
        momentum: key of a matrix's momentum.
        moments: keys of AdamW's two moments, of what is no matrix.
        options: keys of a matrix group's options by ours.
        adamw_options: likewise of AdamW's, with ``betas`` unless they are two.
        scales: its names of `SCALES` that it has; one that is ``None`` is its only one.
    """

    name: str
    sums: bool
    momentum: str
    moments: tuple[str, str]
    options: Mapping[str, str]
    adamw_options: Mapping[str, str]
    scales: Mapping[str | None, str]


_SAME = {key: key for key in ("lr", "weight_decay", "momentum", "nesterov")}
_ADAMW = {key: key for key in ("lr", "weight_decay", "betas", "eps")}

LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(
            "torch",
            False,
            MOMENTUM,
            ("exp_avg", "exp_avg_sq"),
            {**_SAME, "ns_steps": "ns_steps", "ns_eps": "eps", "adjust_lr_fn": "adjust_lr_fn"},
            _ADAMW,
            {None: "original", "original": "original", "match_rms_adamw": "match_rms_adamw"},
        ),
        Layout(
            "keller",
            False,
            MOMENTUM,
            ("exp_avg", "exp_avg_sq"),
            {key: key for key in ("lr", "weight_decay", "momentum")},
            _ADAMW,
            {None: "original"},
        ),
        Layout(
            "moonlight",
            True,
            MOMENTUM,
            ("moment1", "moment2"),
            {**_SAME, "weight_decay": "wd", "ns_steps": "ns_steps"},
            {"lr": "lr", "weight_decay": "wd", "betas": "adamw_betas", "eps": "adamw_eps"},
            {None: "match_rms_adamw"},
        ),
        Layout(
            "dion",
            True,
            "momentum",
            ("momentum", "variance"),
            {**_SAME, "momentum": "mu", "ns_eps": "epsilon", "adjust_lr_fn": "adjust_lr"},
            {"lr": "lr", "weight_decay": "weight_decay", "eps": "epsilon"},
            {"rms_norm": "match_rms_adamw", "spectral_norm": "unit_rms_norm"},
        ),
    )
}
"""By name."""


def layout_of(groups: Sequence[Group], asked: str | None) -> Layout:
    """Return the layout of a state dict.

    Raises:
        ConfigurationError: ``asked`` is the name of none.
        ConversionError: it cannot be told.
    """
    if asked is not None:
        if asked not in LAYOUTS:
            raise ConfigurationError(
                f"layout={asked!r} must be one of {', '.join(map(repr, LAYOUTS))}."
            )
        return LAYOUTS[asked]
    tests: dict[str, Callable[[Group], bool]] = {
        "dion": lambda group: "mu" in group and "algorithm" in group,
        "moonlight": lambda group: "wd" in group and "adamw_betas" in group,
        "keller": lambda group: "use_muon" in group,
        "torch": lambda group: "ns_coefficients" in group and "adjust_lr_fn" in group,
    }
    for name, test in tests.items():
        if any(map(test, groups)):
            return LAYOUTS[name]
    raise ConversionError(
        "the state does not tell whose Muon it is of, and so not whether its momentum is an "
        "average or 1 / (1 - momentum) times that.",
        hint="Say it with layout=: 'torch' and 'keller' keep an average, 'moonlight' and 'dion' a "
        "sum.",
    )


def is_matrix(layout: Layout, group: Group, entry: Entry | None) -> bool:
    """Return whether a parameter is one that Muon stepped."""
    if layout.name == "dion":
        return bool(group.get("algorithm", "muon") == "muon")
    if layout.name == "moonlight" and entry is not None and "use_muon" in entry:
        return bool(scalar(entry["use_muon"]))
    if "use_muon" in group:
        return bool(group["use_muon"])
    return "betas" not in group


def own_options(layout: Layout, group: Group, *, matrix: bool) -> dict[str, Any]:
    """Return a group's options under our names.

    Raises:
        ConversionError: it has a scale that there is none of here.
    """
    keys = layout.options if matrix else layout.adamw_options
    found = {own: group[key] for own, key in keys.items() if key in group}
    if not matrix:
        if "betas" not in found and "beta1" in group:
            found["betas"] = (group["beta1"], group["beta2"])
        return found
    scale = found.pop("adjust_lr_fn", None)
    if scale not in layout.scales:
        raise ConversionError(
            f"a group of the state has {layout.options['adjust_lr_fn']}={scale!r}, a scale of "
            f"{layout.name!r} that there is none of here.",
            hint=f"It must be one of {', '.join(map(repr, layout.scales))}.",
        )
    if "ns_coefficients" in group:
        found["ns_coefficients"] = [list(map(float, group["ns_coefficients"]))]
    return {**found, "adjust_lr_fn": layout.scales[scale]}


def read_entry(
    place: str, layout: Layout, group: Group, entry: Entry, *, matrix: bool
) -> tuple[int, dict[str, Tensor]]:
    """Return the completed steps of a parameter, and its moments as we keep them.

    Raises:
        ConversionError: the entry is another, or holds values that no run could have.
    """
    names: Sequence[str] = (MOMENTUM,) if matrix else MOMENTS
    keys = (layout.momentum,) if matrix else layout.moments
    if not all(key in entry for key in keys):
        raise ConversionError(
            f"{place} has {', '.join(sorted(map(repr, entry)))}; the layout {layout.name!r} has "
            f"{' and '.join(map(repr, keys))} of it."
        )
    step = entry.get("step", group.get("step", 0))
    found = checked_parts(place, step, [entry[key] for key in keys], names=names)
    for name, value in found.moments.items():
        check_moment_values(place, name, value)
    moments = {name: value.detach().float() for name, value in found.moments.items()}
    if matrix and layout.sums:
        mu = group.get(layout.options["momentum"])
        if mu is None:
            raise ConversionError(f"{place}: its group has no {layout.options['momentum']!r}.")
        moments[MOMENTUM] = moments[MOMENTUM] * (1.0 - float(mu))
    return found.step, moments


def written_entry(
    layout: Layout, options: Group, step: int, moments: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Return what another program keeps of a parameter."""
    if MOMENTUM not in moments:
        pairs = zip(layout.moments, (moments[name] for name in MOMENTS), strict=True)
        found = {key: value.clone() for key, value in pairs}
        more: dict[str, Any] = {} if layout.name == "dion" else {"step": step}
        if layout.name == "moonlight":
            more["use_muon"] = False
        return {**more, **found}
    momentum = moments[MOMENTUM]
    if layout.sums:
        momentum = momentum / (1.0 - float(options["momentum"]))
    more = {"use_muon": True} if layout.name == "moonlight" else {}
    return {**more, layout.momentum: momentum.clone()}


def written_group(layout: Layout, options: Group, step: int) -> dict[str, Any]:
    """Return the options of a group as another program keeps them.

    Raises:
        ConversionError: the group's scale is none of the program's.
    """
    matrix = bool(options["use_muon"])
    keys = layout.options if matrix else layout.adamw_options
    found = {key: options[own] for own, key in keys.items() if own != "adjust_lr_fn"}
    if "betas" in found:
        found["betas"] = tuple(found["betas"])
    if layout.name == "keller":
        found["use_muon"] = matrix
    if layout.name == "dion":
        beta1, beta2 = options["betas"]
        found |= {"algorithm": "muon" if matrix else "adamw", "step": step}
        found |= {"mu": options["momentum"], "beta1": beta1, "beta2": beta2}
    if not matrix:
        return found
    scales = {own: key for key, own in layout.scales.items()}
    if options["adjust_lr_fn"] not in scales:
        raise ConversionError(
            f"adjust_lr_fn={options['adjust_lr_fn']!r} of a group is none of {layout.name!r}.",
            hint=f"It has {', '.join(map(repr, scales))}.",
        )
    if "adjust_lr_fn" in layout.options:
        found[layout.options["adjust_lr_fn"]] = scales[options["adjust_lr_fn"]]
    return found
