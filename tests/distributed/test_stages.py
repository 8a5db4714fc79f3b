"""Pipelines and experts: processes that have other parameters, and copies that must be equal."""

from pathlib import Path

import torch

from luma_core import LUMA, checkpoint

from .harness import run

CASES = [
    "documented",
    *(f"own_parameters:{kind}" for kind in ("stages", "experts", "none", "orders")),
    "groups_of_their_own",
    "weights_of_stages",
    "what_differs_is_refused",
    "an_error_of_one_reaches_all",
    "counters_of_replicas",
    "a_part_is_loaded_and_all_are_told_alike:same",
    "a_part_is_loaded_and_all_are_told_alike:other",
]


def test_each_process_saves_and_loads_what_it_has(tmp_path: Path) -> None:
    run(2, tmp_path, "stage_cases", CASES)
    assert checkpoint.verify(tmp_path / "stages").ok
    names = [f"layers.{index}.weight" for index in range(4)]
    optimizer = LUMA([(name, torch.nn.Parameter(torch.zeros(64, 130))) for name in names])
    checkpoint.load(tmp_path / "stages", optimizer=optimizer)
    assert {state.step for state in optimizer.parameter_states()} == {2}
    run(1, tmp_path, "stage_cases", ["documented"])
