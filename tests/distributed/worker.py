"""One process of a test: joins its group, runs cases, and tells what became of each.

python worker.py RANK WORLD TIMEOUT_SECONDS FOLDER MODULE CASE...
"""

import importlib
import json
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist


def main() -> None:
    rank, world, timeout_seconds = map(int, sys.argv[1:4])
    folder, module, *names = sys.argv[4:]
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
    out = Path(folder) / f"result-{rank}.json"
    for name in names:
        function, _, argument = name.partition(":")
        try:
            case = getattr(cases, function)
            case(*([argument] if argument else []), folder=Path(folder))
            results[name] = ""
        except Exception:
            results[name] = traceback.format_exc()
        out.write_text(json.dumps(results))
        if results[name]:
            # The others may be anywhere: nothing that follows could be trusted.
            sys.exit(1)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
