"""How much of the code one call walks through: a reader who follows it visits as many places.

``python -m benchmarks.walks [--list NAME]``. Each walk is taken twice, and the second is counted:
all functions of this project that were entered, by any thread, and the files that they stand in.
Comprehensions and lambdas count as part of the function around them. The upload's server is a
process of its own, so that its client side is counted alone.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import NamedTuple

import torch
from torch import nn

import luma_client
import luma_core
import luma_kernels
from benchmarks.service.processes import luma_server
from luma_core import LUMA, checkpoint
from luma_core.checkpoint.storage.open import open_store
from luma_core.convert import convert

PACKAGES = tuple(
    f"{Path(package.__file__).parent}/" for package in (luma_core, luma_kernels, luma_client)
)


class Place(NamedTuple):
    """A function.

    Attributes:
        file: that it stands in, from its package's name on.
        line: its first.
        name: its qualified name.
    """

    file: str
    line: int
    name: str


def visited(call: Callable[[], object]) -> list[Place]:
    """Make a call twice; return the functions of this project that the second enters, sorted.

    Threads that the first one starts, and leaves for the second, are followed as well.
    """
    found: set[CodeType] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            found.add(frame.f_code)

    before = sys.getprofile()
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        call()
        found.clear()
        call()
    finally:
        sys.setprofile(before)
        threading.setprofile(None)
    return sorted(filter(None, map(_place, found)))


def _place(code: CodeType) -> Place | None:
    """Return where a function of this project stands; None of others, and of a function's parts."""
    package = next((one for one in PACKAGES if code.co_filename.startswith(one)), None)
    if package is None or code.co_name.startswith("<"):
        return None
    file = code.co_filename[len(str(Path(package).parent)) + 1 :]
    return Place(file, code.co_firstlineno, code.co_qualname)


def trained() -> tuple[nn.Module, LUMA]:
    """Return a model on the CPU and its optimizer, after a step."""
    model = nn.Sequential(nn.Linear(128, 64), nn.Linear(64, 8))
    optimizer = LUMA(model.named_parameters(), seed=0, min_compress_elements=1)
    give_gradients(model)
    optimizer.step()
    return model, optimizer


def give_gradients(model: nn.Module) -> None:
    """Give each parameter a gradient of ones."""
    for param in model.parameters():
        param.grad = torch.ones_like(param)


def save_adamw(path: Path) -> None:
    """Save the state of ``torch.optim.AdamW`` after a step."""
    model = nn.Linear(128, 64)
    optimizer = torch.optim.AdamW(model.named_parameters())
    give_gradients(model)
    optimizer.step()
    torch.save(optimizer.state_dict(), path)


@contextlib.contextmanager
def walks(folder: Path) -> Iterator[dict[str, Callable[[], object]]]:
    """Give what is walked, by name; each may be called twice."""
    model, optimizer = trained()
    saved, root = folder / "saved", folder / "root"
    root.mkdir()
    save_adamw(folder / "adamw.pt")
    counts = iter(range(1000))
    # Of a file that it has already the server takes no bytes, so each upload has its own.
    sent = []
    for name in ("first", "second"):
        optimizer.step()
        store = open_store(folder / name)
        sent.append((store, checkpoint.save(store, optimizer=optimizer, model=model).to_bytes()))
    sending = iter(sent)

    def save() -> object:
        return checkpoint.save(saved, optimizer=optimizer, model=model, overwrite=True)

    def load() -> object:
        return checkpoint.load(saved, optimizer=optimizer, model=model)

    def convert_adamw() -> object:
        return convert(folder / "adamw.pt", folder / f"converted-{next(counts)}", to="luma")

    with luma_server(root) as server, luma_client.Client(server.url) as client:

        def upload() -> object:
            return client.upload(*next(sending), "run", str(next(counts)))

        yield {
            "step": optimizer.step,
            "save": save,
            "load": load,
            "convert": convert_adamw,
            "upload": upload,
        }


def measure() -> dict[str, list[Place]]:
    """Return the functions of each walk."""
    with tempfile.TemporaryDirectory(prefix="luma-walks-") as folder, walks(Path(folder)) as calls:
        return {name: visited(call) for name, call in calls.items()}


def main(arguments: list[str] | None = None) -> None:
    """Print the table, or the functions of one walk."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", metavar="NAME", help="print the functions of one walk instead")
    chosen = parser.parse_args(arguments).list
    torch.manual_seed(0)
    found = measure()
    if chosen is not None:
        for place in found[chosen]:
            print(f"{place.file}:{place.line} {place.name}")
        return
    print("| walk | functions | files |")
    print("|---|--:|--:|")
    for name, places in found.items():
        print(f"| {name} | {len(places)} | {len({place.file for place in places})} |")


if __name__ == "__main__":
    main()
