"""One process of a test: joins its group, runs cases, and tells what became of each."""

import importlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist


def work(
    rank: int, world: int, timeout_seconds: int, folder: Path, module: str, names: Sequence[str]
) -> None:
    """Run functions of a module.

    Writes what each raised to ``result-RANK.json``, and what is printed to ``RANK.log``.
    """
    with (folder / f"{rank}.log").open("wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=timeout_seconds),
    )
    cases = importlib.import_module(module)
    results: dict[str, str] = {}
    out = folder / f"result-{rank}.json"
    for name in names:
        function, _, argument = name.partition(":")
        try:
            case = getattr(cases, function)
            case(*([argument] if argument else []), folder=folder)
            results[name] = ""
        except Exception:
            results[name] = traceback.format_exc()
        out.write_text(json.dumps(results))
        if results[name]:
            # The others may be anywhere: nothing that follows could be trusted.
            sys.exit(1)
    dist.barrier()
    dist.destroy_process_group()
