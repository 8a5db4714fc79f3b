"""``luma inspect``: what a checkpoint or a file of AdamW state holds, from its metadata."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luma_client.console.formats import bytes_text, number, shape_text
from luma_client.console.output import JsonOption, Output, QuietOption

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from luma_core.convert import Source

HELP = (
    "Show what a checkpoint holds, from its metadata.\n\n"
    "That is: format, algorithm, step, groups and their options, sizes, what stays in float32 and "
    "why, and the files."
)
EPILOG = (
    "Example: luma inspect runs/gpt2/1000 --params\n\nJSON keys: path, format, version, "
    "algorithm, step, created, digest, groups, parameters, elements, state_bytes, stored_bytes, "
    "bits_per_parameter, adamw_ratio, float32, files, parameter_table, base, chain"
)


@dataclass(frozen=True)
class ParameterLine:
    """One parameter of the table.

    Attributes:
        name: its name.
        shape: its shape.
        dtype: its dtype without ``torch.``.
        group: index of its group.
        step: completed steps.
        elements: its elements.
        codecs: name of the codec of each moment; empty without state.
        state_bytes: bytes of its state's tensors in memory.
        bits_per_parameter: ``8 * state_bytes / elements``; ``None`` without elements.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    group: int
    step: int
    elements: int
    codecs: dict[str, str]
    state_bytes: int
    bits_per_parameter: float | None


@dataclass(frozen=True)
class Inspection:
    """What ``luma inspect`` shows; its fields are the keys of ``--json``.

    Attributes:
        path: where it is.
        format: ``luma``, or the name of the foreign format.
        version: of the format; ``None`` for foreign ones, like the next but one and two.
        algorithm: the optimizer's.
        step: completed steps, the largest of any parameter.
        created: when it was written.
        digest: SHA-256 of the manifest.
        groups: options of each group.
        parameters: number of parameters.
        elements: their elements.
        state_bytes: size of the state's tensors in memory.
        stored_bytes: size of the optimizer state on disk.
        bits_per_parameter: ``8 * state_bytes / elements``.
        adamw_ratio: ``state_bytes`` over the 8 bytes per parameter of AdamW in float32.
        float32: parameters, elements and reason of what stays in float32.
        files: name, bytes, sha256 and kind of every file but the manifest.
        parameter_table: one `ParameterLine` each.
        base: folder, digest and chain of the checkpoint it holds differences to; ``None`` without.
        chain: how many checkpoints it takes to read this one; ``None`` for foreign formats.
    """

    path: str
    format: str
    version: int | None
    algorithm: str
    step: int
    created: str | None
    digest: str | None
    groups: list[dict[str, Any]]
    parameters: int
    elements: int
    state_bytes: int
    stored_bytes: int
    bits_per_parameter: float | None
    adamw_ratio: float | None
    float32: dict[str, Any]
    files: list[dict[str, Any]]
    parameter_table: list[ParameterLine]
    base: dict[str, Any] | None
    chain: int | None


def command(
    path: Annotated[
        str,
        typer.Argument(help="Checkpoint folder, or an AdamW state dict file.", show_default=False),
    ],
    params: Annotated[
        bool, typer.Option("--params", "-p", help="Also list every parameter.", show_default=False)
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run ``luma inspect``."""
    from luma_core import checkpoint, convert

    output = Output(json=as_json, quiet=quiet)
    if checkpoint.exists(path):
        found = _of_checkpoint(path)
    else:
        found = _of_foreign(path, convert.open_source(path))
    output.result(asdict(found), human=lambda: _view(found, params), quiet=found.format)


def _of_checkpoint(path: str) -> Inspection:
    from luma_core import checkpoint

    with checkpoint.open(path) as opened:
        manifest = opened.manifest
    lines = []
    for entry in manifest.parameters:
        codecs = {moment: config["name"] for moment, config in entry.codecs.items()}
        state_bytes = _layout_bytes(entry.codecs, entry.shape)
        state_bytes += entry.counter_bytes
        lines.append(
            _line(
                entry.name, entry.shape, entry.dtype, entry.group, entry.step, codecs, state_bytes
            )
        )
    summary = manifest.summary
    return _inspection(
        lines,
        path=path,
        format=manifest.format,
        version=manifest.version,
        algorithm=manifest.algorithm,
        created=manifest.created,
        digest=manifest.digest,
        groups=list(manifest.groups),
        stored_bytes=summary.stored_bytes,
        float32=_float32(lines, manifest.groups),
        files=[asdict(file) for file in manifest.files],
        base=None if manifest.base is None else asdict(manifest.base),
        chain=manifest.chain,
    )


def _of_foreign(path: str, source: Source) -> Inspection:
    lines = [
        _line(
            info.name,
            info.shape,
            info.dtype,
            info.group,
            info.step,
            dict.fromkeys(("exp_avg", "exp_avg_sq"), info.dtype) if info.has_state else {},
            (2 * math.prod(info.shape) * _itemsize(info.dtype) + 4) if info.has_state else 0,
        )
        for info in source.parameters()
    ]
    return _inspection(
        lines,
        path=path,
        format=source.format,
        version=None,
        algorithm="adamw",
        created=None,
        digest=None,
        groups=list(source.groups()),
        stored_bytes=source.stored_bytes,
        float32={"parameters": 0, "elements": 0, "why": "nothing is compressed in this format"},
        files=[],
        base=None,
        chain=None,
    )


def _inspection(lines: list[ParameterLine], **known: Any) -> Inspection:
    elements = sum(line.elements for line in lines)
    state_bytes = sum(line.state_bytes for line in lines)
    return Inspection(
        step=max((line.step for line in lines), default=0),
        parameters=len(lines),
        elements=elements,
        state_bytes=state_bytes,
        bits_per_parameter=8 * state_bytes / elements if elements else None,
        adamw_ratio=state_bytes / (8 * elements) if elements else None,
        parameter_table=lines,
        **known,
    )


def _line(
    name: str,
    shape: tuple[int, ...],
    dtype: str,
    group: int,
    step: int,
    codecs: dict[str, str],
    state_bytes: int,
) -> ParameterLine:
    elements = math.prod(shape)
    bits = 8 * state_bytes / elements if elements else None
    return ParameterLine(name, shape, dtype, group, step, elements, codecs, state_bytes, bits)


def _layout_bytes(configs: dict[str, dict[str, Any]], shape: tuple[int, ...]) -> int:
    from luma_core.codecs import codec_from_dict

    return sum(
        spec.nbytes
        for config in configs.values()
        for spec in codec_from_dict(config).layout(shape).values()
    )


def _itemsize(dtype: str) -> int:
    from luma_core.dtypes import ITEM_BYTES, named_dtype

    size = ITEM_BYTES.get(dtype)
    return named_dtype(dtype).itemsize if size is None else size


def _float32(lines: list[ParameterLine], groups: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    kept = [line for line in lines if line.codecs and set(line.codecs.values()) == {"fp32"}]
    key = "min_compress_elements"
    bounds = sorted({group[key] for group in groups if key in group})
    why = "this optimizer's state is kept as it is"
    if bounds:
        why = (
            "flat tensors (fewer than 2 dimensions, or rows of fewer than 32 elements) below "
            f"{key}={' or '.join(f'{bound:,}' for bound in bounds)}"
        )
    return {"parameters": len(kept), "elements": sum(line.elements for line in kept), "why": why}


def _view(found: Inspection, params: bool) -> Group:
    from rich.console import Group, RenderableType

    from luma_client.console.tables import facts, plain_table

    parts: list[RenderableType] = [facts(_head_rows(found))]
    if found.files:
        table = plain_table(["file", "kind", "size"], left=2)
        for file in found.files:
            table.add_row(file["name"], file["kind"], bytes_text(file["bytes"]))
        parts += ["", table]
    if params:
        parts.append(_parameter_table(found))
    return Group(*parts)


def _head_rows(found: Inspection) -> list[tuple[str, str]]:
    from luma_client.console.tables import state_size_rows

    version = "" if found.version is None else f" v{found.version}"
    rows = [
        ("path", found.path),
        ("format", f"{found.format}{version}, algorithm {found.algorithm}"),
        ("step", f"{found.step:,}"),
    ]
    if found.created is not None and found.digest is not None:
        rows += [("created", found.created), ("digest", found.digest)]
    if found.base is not None:
        rows.append(("base", f"{found.base['folder']}; a chain of {found.chain} checkpoints"))
    rows += [
        ("parameters", f"{found.parameters:,} with {found.elements:,} elements"),
        ("bits per parameter", number(found.bits_per_parameter, 4)),
        *state_size_rows(
            elements=found.elements,
            state_bytes=found.state_bytes,
            stored_bytes=found.stored_bytes,
        ),
    ]
    kept = found.float32
    text = f"{kept['parameters']:,} parameters, {kept['elements']:,} elements: {kept['why']}"
    rows.append(("kept in float32", text))
    for index, group in enumerate(found.groups):
        rows.append((f"group {index}", _options_text(group)))
    return rows


def _options_text(group: dict[str, Any]) -> str:
    parts = [
        f"{key}={value}"
        for key, value in group.items()
        if key not in ("codecs", "parameter_codecs")
    ]
    if group.get("parameter_codecs"):
        parts.append(f"codecs of their own: {len(group['parameter_codecs']):,} parameters")
    for moment, config in group.get("codecs", {}).items():
        options = ", ".join(f"{k}={v}" for k, v in config.items() if k != "name")
        parts.append(f"{moment}={config['name']}({options})")
    return ", ".join(parts)


def _parameter_table(found: Inspection) -> Table:
    from luma_client.console.tables import plain_table

    table = plain_table(["parameter", "shape", "codecs", "dtype", "group", "step", "bits"], left=3)
    for line in found.parameter_table:
        table.add_row(
            line.name,
            shape_text(line.shape),
            ", ".join(dict.fromkeys(line.codecs.values())) or "no state yet",
            line.dtype,
            str(line.group),
            f"{line.step:,}",
            number(line.bits_per_parameter, 4),
        )
    return table
