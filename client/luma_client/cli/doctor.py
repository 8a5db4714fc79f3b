"""``luma doctor``: what is installed, what the machine has, which backend would take a step."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from luma_client.console import offload_advice
from luma_client.console.output import JsonOption, Output, QuietOption

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Group
    from rich.table import Table

    from luma_core.codecs import Codec
    from luma_core.rules import Rule

HELP = (
    "Show versions, devices, the native library, and which backend takes which step.\n\n"
    "Exits 1 if some step of LUMA on the CPU would take the slower PyTorch path."
)
EPILOG = (
    "Example: luma doctor --json\n\nJSON keys: ok, versions, cpu, cuda, native, offload, codecs, "
    "extensions, backends and kernels (backends: for each device, optimizer, rule, codecs and "
    "block_size the backend and the reason; offload: what offload='auto' chooses by; codecs: what "
    "codec= of an optimizer takes, presets and codecs by the kind of moment; extensions: codecs "
    "and formats of other packages, each a group, name, package and problem; kernels: for each "
    "rule and codecs why native and triton have no kernel, empty where they have one)"
)

PACKAGES = (
    *("torch", "triton", "numpy", "zstandard", "safetensors", "fsspec", "s3fs"),
    *("pydantic", "fastapi", "uvicorn", "httpx", "typer", "rich"),
)
"""Whose versions are shown; those of extras may be missing."""


@dataclass(frozen=True)
class Diagnosis:
    """What ``luma doctor`` shows; its fields are the keys of ``--json``.

    Attributes:
        ok: whether LUMA's steps on the CPU take the native path.
        versions: of luma-state, Python and `PACKAGES`; ``None`` for what is not installed.
        cpu: name, architecture, cores, PyTorch's threads, instruction sets with own kernels.
        cuda: the devices that PyTorch sees.
        native: whether the native library can be used, and why not.
        offload: what ``offload="auto"`` chooses by.
        codecs: what ``codec=`` of an optimizer takes.
        extensions: the codecs and formats that other packages bring, with what is wrong with them.
        backends: one entry per device, optimizer and pair of codecs: who takes a step, and why.
        kernels: one entry per rule and codecs: why each backend has no kernel; empty if it has.
    """

    ok: bool
    versions: dict[str, str | None]
    cpu: dict[str, Any]
    cuda: list[dict[str, Any]]
    native: dict[str, Any]
    offload: dict[str, Any]
    codecs: dict[str, Any]
    extensions: list[dict[str, Any]]
    backends: list[dict[str, Any]]
    kernels: list[dict[str, Any]]


def command(as_json: JsonOption = False, quiet: QuietOption = False) -> int:
    """Run ``luma doctor``."""
    output = Output(json=as_json, quiet=quiet)
    found = diagnose()
    output.result(
        asdict(found), human=lambda: _view(found), quiet="ok" if found.ok else "not native"
    )
    return 0 if found.ok else 1


def diagnose() -> Diagnosis:
    """Look at this installation and this machine."""
    from luma_core.backends.matrix import kernel_rows
    from luma_kernels import cpu

    status = cpu.native_status()
    backends = _backends()
    return Diagnosis(
        ok=all(
            entry["backend"] == "native"
            for entry in backends
            if entry["device"] == "cpu" and entry["optimizer"] == "LUMA"
        ),
        versions=_versions(),
        cpu=_cpu(status.instruction_sets),
        cuda=_cuda(),
        native=asdict(status),
        offload=offload_advice.measured(),
        codecs=_codecs(),
        extensions=_extensions(),
        backends=backends,
        kernels=[row._asdict() for row in kernel_rows()],
    )


def _versions() -> dict[str, str | None]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from luma_core import __version__

    found: dict[str, str | None] = {
        "luma-state": __version__,
        "python": platform.python_version(),
    }
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _extensions() -> list[dict[str, Any]]:
    from luma_core.codecs import registry as codecs
    from luma_core.convert import registry as formats

    return [asdict(one) for each in (codecs, formats) for one in each.entry_points.load()]


def _cpu(instruction_sets: tuple[str, ...]) -> dict[str, Any]:
    import os
    import platform

    import torch

    return {
        "name": _cpu_name() or platform.processor() or "unknown",
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_sets": list(instruction_sets),
    }


def _cpu_name() -> str:
    from pathlib import Path

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "")


def _cuda() -> list[dict[str, Any]]:
    import torch

    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_bytes": properties.total_memory,
            }
        )
    return devices


def _codecs() -> dict[str, Any]:
    """Return what ``codec=`` takes: presets, and codecs by the kind of moment that they store."""
    from luma_core.optim.presets import DEFAULT_BLOCK_SIZE, PRESETS, codecs_of_kind

    return {
        "presets": {
            name: {kind: build(DEFAULT_BLOCK_SIZE).name for kind, build in kinds.items()}
            for name, kinds in PRESETS.items()
        },
        "signed": list(codecs_of_kind("signed")),
        "square": list(codecs_of_kind("square")),
    }


def _backends() -> list[dict[str, Any]]:
    """Return who takes the steps of every optimizer's parameters."""
    from luma_core.backends import registry

    entries = []
    for device in ("cpu", "cuda"):
        for optimizer, rule, codecs in _choices():
            choice = registry.choose(device, rule, codecs)
            entries.append(
                {
                    "device": device,
                    "optimizer": optimizer,
                    "rule": type(rule).__name__.removesuffix("Rule").lower(),
                    "codecs": {moment: codec.name for moment, codec in codecs.items()},
                    "block_size": next(iter(codecs.values())).block_size,
                    "backend": choice.backend,
                    "reason": choice.reason,
                }
            )
    return entries


def _choices() -> Iterator[tuple[str, Rule, dict[str, Codec]]]:
    """Yield optimizers, their rules and codecs: LUMA's for large and for small parameters."""
    from luma_core import LAMB, LUMA, AdamMini, TurboAdam
    from luma_core.codecs import BF16, FP32, Partition, SegmentMean, codec_from_dict
    from luma_core.optim import luma_codecs
    from luma_core.optim.presets import TURBO_PRESETS
    from luma_core.optim.turbo_adam import turbo_codecs

    for block_size in (128, None):
        configs = luma_codecs(block_size=block_size)
        luma = {moment: codec_from_dict(config) for moment, config in configs.items()}
        yield "LUMA", LUMA.rule, luma
        yield "LUMA", LUMA.rule, {moment: FP32(block_size=block_size) for moment in configs}
    for preset in TURBO_PRESETS:
        configs = turbo_codecs(preset=preset)
        turbo = {moment: codec_from_dict(config) for moment, config in configs.items()}
        yield f"TurboAdam {preset}", TurboAdam.rule, turbo
    by_row = SegmentMean(partition=Partition.rows((1024, 1024)))
    yield "AdamMini", AdamMini.rule, {"exp_avg": BF16(), "exp_avg_sq": by_row}
    configs = luma_codecs(block_size=128)
    luma = {moment: codec_from_dict(config) for moment, config in configs.items()}
    yield "LAMB", LAMB.rule, luma


def _view(found: Diagnosis) -> Group:
    from rich.console import Group

    from luma_client.console.formats import bytes_text
    from luma_client.console.tables import facts, plain_table

    versions = ", ".join(f"{name} {text}" for name, text in found.versions.items() if text)
    missing = ", ".join(name for name, text in found.versions.items() if text is None)
    cpu, native = found.cpu, found.native
    gpus = [
        f"{gpu['name']}, compute capability {gpu['capability']}, {bytes_text(gpu['memory_bytes'])}"
        for gpu in found.cuda
    ]
    state = (
        f"{native['instruction_sets'][-1]} in use, {native['threading']}, {native['path']}"
        if native["available"]
        else f"not available: {native['reason']}"
    )
    rows = [
        ("versions", versions),
        ("not installed", missing or "-"),
        (
            "CPU",
            f"{cpu['name']} ({cpu['architecture']}), {cpu['cores']} cores, "
            f"{cpu['threads']} threads",
        ),
        ("CUDA", "; ".join(gpus) or "no device"),
        ("native library", state),
        ("builds for this CPU", ", ".join(native["instruction_sets"]) or "-"),
        *(("offload", line) for line in offload_advice.lines(found.offload)),
        ("codec=", ", ".join(found.codecs["presets"])),
        ("codecs of exp_avg", ", ".join(found.codecs["signed"])),
        ("codecs of exp_avg_sq", ", ".join(found.codecs["square"])),
    ]
    for one in found.extensions:
        state = f"cannot be used: {one['problem']}" if one["problem"] else "usable"
        rows.append((one["group"], f"{one['name']} of {one['package']}, {state}"))
    columns = ["device", "optimizer", "codecs", "block", "backend", "reason"]
    table = plain_table(columns, left=len(columns))
    for entry in found.backends:
        table.add_row(
            entry["device"],
            entry["optimizer"],
            ", ".join(dict.fromkeys(entry["codecs"].values())),
            str(entry["block_size"] or "tensor"),
            entry["backend"],
            entry["reason"],
        )
    return Group(facts(rows), "", table, "", _kernel_table())


def _kernel_table() -> Table:
    from luma_client.console.tables import plain_table
    from luma_core.backends.matrix import kernel_table

    header, *lines = kernel_table()
    table = plain_table(header, left=len(header))
    for line in lines:
        table.add_row(*line)
    return table
