"""`save_sharded` and `load_sharded` of parameters on any mesh, or on some processes only."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from luma_core import TurboAdam, checkpoint
from luma_core.checkpoint.format.consistency import check_consistency
from luma_core.convert import convert
from luma_core.errors import CorruptCheckpointError
from luma_core.stats import compute

from .harness import run

SAVED = ["turbo_5bit,2x2", "turbo_5bit,columns", "luma,2x2", "luma,2x1x2"]


def one_process_reads_parts(url: Path, folder: Path) -> None:
    """Whoever knows no processes sees whole moments, in every way to look at them."""
    opened = checkpoint.open(url)
    name, moment = "columns", "exp_avg"
    shape = opened.parameter_state(name).shape
    assert len(opened.boxes(name, moment)) == 2
    values = opened.read(name, moment)
    assert values.shape == shape
    assert torch.equal(opened.read(name, moment, rows=slice(3, 9)), values[3:9])
    fields = opened.parameter_state(name).moment_fields(moment)
    assert torch.equal(opened.read(name, moment, field="codes"), fields["codes"])
    assert torch.equal(
        opened.read(name, moment, field="scale", rows=slice(2, 4)), fields["scale"][2:4]
    )
    params = [(s.name, nn.Parameter(torch.zeros(s.shape))) for s in opened.states()]
    optimizer = TurboAdam(params)
    checkpoint.load(url, optimizer=optimizer)
    loaded = optimizer.parameter_state(name).moment_fields(moment)
    assert all(torch.equal(loaded[key], value) for key, value in fields.items())
    assert compute(opened) == compute(optimizer)
    flat = checkpoint.flatten(url, folder / "flat")
    assert flat.version == 1
    found = checkpoint.open(folder / "flat").parameter_state(name).moment_fields(moment)
    assert all(torch.equal(found[key], value) for key, value in fields.items())
    convert(url, folder / "adamw.pt", to="adamw")
    exported = torch.load(folder / "adamw.pt", weights_only=True)["state"]
    index = opened.parameter_names().index(name)
    assert torch.equal(exported[index][moment], values)
    convert(url, folder / "again", to="luma")
    assert checkpoint.open(folder / "again").manifest.version == 1
    wrong_boxes_are_refused(opened.manifest)


def wrong_boxes_are_refused(manifest: checkpoint.Manifest) -> None:
    place, entry = next((i, e) for i, e in enumerate(manifest.tensors) if e.box is not None)
    first, *others = entry.box
    boxes = [
        None,
        (),
        entry.box[:-1],
        ((first[0] + 1, first[1] + 1), *others),
        ((0, 0), *others),
        ((-1, first[1]), *others),
        ((0, 1 << 62), *others),
        tuple(reversed(entry.box)),
    ]
    changes = [{"box": box} for box in boxes] + [{"first_row": 0}, {"name": "other/exp_avg.codes"}]
    for change in changes:
        tensors = list(manifest.tensors)
        tensors[place] = replace(entry, **change)
        with pytest.raises(CorruptCheckpointError):
            check_consistency(replace(manifest, tensors=tuple(tensors)), "here")
    with pytest.raises(CorruptCheckpointError, match="version"):
        check_consistency(replace(manifest, version=3), "here")


def test_the_same_mesh_resumes_with_the_same_bits(tmp_path: Path) -> None:
    cases = [f"resumed_on_the_same_mesh:{one}" for one in SAVED]
    run(4, tmp_path, "mesh_cases", cases)
    for one in SAVED:
        url = tmp_path / one.replace(",", "-")
        assert checkpoint.verify(url).ok
        assert checkpoint.open(url).manifest.version == 4
    one_process_reads_parts(tmp_path / "turbo_5bit-2x2", tmp_path)
    for world in (2, 1):
        run(world, tmp_path, "mesh_cases", [f"loads_everywhere:{one},columns" for one in SAVED])


def test_tensor_parallel_models_are_saved_whole(tmp_path: Path) -> None:
    run(4, tmp_path, "mesh_cases", ["tensor_parallel_resumes:fsdp", "tensor_parallel_resumes:none"])
