"""Steps with state on disk, more of it than memory: against reads and writes of as many bytes.

``python -m benchmarks.offload_disk --parameters 2e9 [--memory 4GiB] [--json F]`` steps LUMA on the
CPU. Only state is as large as that of a model of so many parameters: all parameters are views of
one bfloat16 buffer, and all gradients are one tensor, for both of the model's size would not fit
the memory that is allowed. Each view is stepped as a parameter of its own.

- *step*: the time of a step and of writing all of it back. The first one is not timed: it reads
  holes of a new file.
- *disk*: the time of reading and writing as many bytes as the state has, both at once, past the
  page cache, by as many threads and in pieces as large as a step's; before and after each step.
- *of disk*: the median of the latter over that of the former.
- *save*, *load of state*: the times of ``checkpoint.save(compression="none")`` and of loading that
  into the optimizer: each reads as many bytes as the state has, and writes as many. The disk must
  have room for the state, the state that is loaded and the checkpoint at once.
- *resident*: the time of a step of as many parameters whose state is in memory, from one of them.
- *load of the machine*: runnable processes in the last minute, before and after, ours with them.
- *memory*: the largest size of what the process has in memory that is not of files, over all of
  that, and how much of the state the page cache holds behind the last step. The process is not
  confined: that it stays below ``--memory`` is measured, and the exit status is 1 if it does not.
- *moved*: bytes that the kernel read from and wrote to storage for this process, per timed step.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from luma_core import LUMA, checkpoint
from luma_core.direct import transfer_memory
from luma_core.optim.offload import DEFAULT_BUFFER_BYTES

SHAPE = (16384, 4096)
PIECE_BYTES = 14 << 20
THREADS_EACH_WAY = 2

Call = Callable[[int, list[memoryview], int], int]
"""`os.preadv` or `os.pwritev`."""


@dataclass(frozen=True)
class Result:
    """What was measured; seconds are of one step, or of as many bytes as it moves."""

    benchmark: str
    parameters: int
    state_bytes: int
    buffer_bytes: int
    allowed_bytes: int
    cores: int
    torch_threads: int
    load: list[float]
    step_seconds: list[float]
    disk_seconds: list[float]
    save_seconds: float
    load_seconds: float
    resident_seconds: float
    of_disk: float
    peak_bytes: int
    page_cache_bytes: int
    read_bytes: int
    written_bytes: int


def parse_bytes(text: str) -> int:
    """Return the bytes of a size such as ``4GiB``."""
    for unit, power in (("GiB", 30), ("MiB", 20)):
        if text.endswith(unit):
            return int(float(text.removesuffix(unit)) * (1 << power))
    return int(text)


def build(count: int, **options: object) -> LUMA:
    """Return an optimizer over ``count`` parameters in the same memory, with one gradient."""
    torch.manual_seed(0)
    buffer, grad = torch.randn(SHAPE).bfloat16(), torch.randn(SHAPE).bfloat16()
    params = [nn.Parameter(buffer.view(SHAPE)) for _ in range(count)]
    optimizer = LUMA(
        [(f"layers.{index}.weight", param) for index, param in enumerate(params)],
        seed=0,
        lr=1e-6,
        **options,  # type: ignore[arg-type]
    )
    for param in params:
        param.grad = grad
    return optimizer


def resident_seconds(count: int) -> float:
    """Return the time of a step of ``count`` parameters, from that of one."""
    optimizer = build(1)
    optimizer.step()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        optimizer.step()
        times.append(time.perf_counter() - start)
    return min(times) * count


class Disk:
    """A file of its own, to measure the disk with.

    Args:
        folder: on the disk.
        size: of the file in bytes, rounded down to pieces.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self._places = list(range(0, size - PIECE_BYTES + 1, PIECE_BYTES))
        self._part = len(self._places) * PIECE_BYTES / size
        path = folder / "disk"
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
        path.unlink()
        os.posix_fallocate(self._file, 0, size)
        # Holes are read without the disk.
        self._run([(os.pwritev, self._places)])

    def seconds(self) -> float:
        """Return the time of reading and writing as many bytes, both at once."""
        half = len(self._places) // 2
        reads = self._places[half:] + self._places[:half]
        start = time.perf_counter()
        self._run([(os.preadv, reads), (os.pwritev, self._places)])
        return (time.perf_counter() - start) / self._part

    def _run(self, work: list[tuple[Call, list[int]]]) -> None:
        threads = [
            threading.Thread(target=self._move, args=(call, places[index::THREADS_EACH_WAY]))
            for call, places in work
            for index in range(THREADS_EACH_WAY)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _move(self, call: Call, places: list[int]) -> None:
        # In huge pages, as slots are: a disk takes a limited number of pages in one request.
        memory = transfer_memory(PIECE_BYTES)
        memory[:] = np.frombuffer(os.urandom(1 << 20) * (PIECE_BYTES >> 20), np.uint8)
        for place in places:
            if call(self._file, [memory.data], place) != PIECE_BYTES:
                raise SystemExit("the disk moved less than a piece")

    def close(self) -> None:
        """Give the room back."""
        os.close(self._file)


class Memory:
    """Watches the memory of this process that is not of files."""

    def __init__(self) -> None:
        self.peak_bytes = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch while the block runs."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.02):
                self.peak_bytes = max(self.peak_bytes, unnamed_bytes())

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def unnamed_bytes() -> int:
    """Return the resident memory of this process that is not of files."""
    kinds = ("RssAnon:", "RssShmem:")
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(kinds))


def cached_bytes(mapped: Tensor) -> int:
    """Return how much of a mapped file the page cache holds."""
    pages = -(-mapped.numel() // mmap.PAGESIZE)
    found = (ctypes.c_ubyte * pages)()
    libc = ctypes.CDLL(None, use_errno=True)
    address, size = ctypes.c_void_p(mapped.data_ptr()), ctypes.c_size_t(mapped.numel())
    if libc.mincore(address, size, found):
        raise OSError(ctypes.get_errno(), "mincore")
    return sum(page & 1 for page in found) * mmap.PAGESIZE


def storage_bytes() -> tuple[int, int]:
    """Return the bytes that this process made the kernel read and write so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"]), int(fields["write_bytes"])


def saved_and_loaded(optimizer: LUMA, folder: Path) -> tuple[float, float]:
    """Return the times of saving all state and of loading it again."""
    start = time.perf_counter()
    checkpoint.save(folder, optimizer=optimizer, compression="none")
    saved = time.perf_counter()
    before = optimizer.parameter_states()[-1].fields
    checkpoint.load(folder, optimizer=optimizer)
    loaded = time.perf_counter()
    after = optimizer.parameter_states()[-1].fields
    for key, value in before.items():
        if after[key].data_ptr() == value.data_ptr() or not torch.equal(after[key], value):
            raise SystemExit(f"{key} is not what was saved")
    return saved - start, loaded - saved


def measure(parameters: int, folder: Path, *, allowed: int, buffer: int, steps: int) -> Result:
    """Run all of it."""
    count, load = max(1, round(parameters / (SHAPE[0] * SHAPE[1]))), [os.getloadavg()[0]]
    resident, memory = resident_seconds(count), Memory()
    times: list[float] = []
    with memory.watched():
        optimizer = build(
            count, offload="disk", offload_directory=folder, offload_buffer_bytes=buffer
        )
        optimizer.step()
        state = optimizer.state_dict()["state"][0]["exp_avg.codes"]
        arena = torch.empty(0, dtype=torch.uint8).set_(state.untyped_storage())
        disk = Disk(folder, arena.numel())
        plain, moved = [disk.seconds()], [0, 0]
        for _ in range(steps):
            before, start = storage_bytes(), time.perf_counter()
            optimizer.step()
            # Waits for all writes, and for what was read ahead for the next step.
            optimizer.state_dict()
            times.append(time.perf_counter() - start)
            moved = [a + c - b for a, b, c in zip(moved, before, storage_bytes(), strict=True)]
            plain.append(disk.seconds())
        disk.close()
        cached = cached_bytes(arena)
        save_seconds, load_seconds = saved_and_loaded(optimizer, folder / "checkpoint")
    return Result(
        benchmark="offload_disk",
        parameters=count * SHAPE[0] * SHAPE[1],
        state_bytes=arena.numel(),
        buffer_bytes=buffer,
        allowed_bytes=allowed,
        cores=os.cpu_count() or 1,
        torch_threads=torch.get_num_threads(),
        load=[*load, os.getloadavg()[0]],
        step_seconds=times,
        disk_seconds=plain,
        save_seconds=save_seconds,
        load_seconds=load_seconds,
        resident_seconds=resident,
        of_disk=statistics.median(plain) / statistics.median(times),
        peak_bytes=memory.peak_bytes,
        page_cache_bytes=cached,
        read_bytes=moved[0] // steps,
        written_bytes=moved[1] // steps,
    )


def print_result(found: Result) -> None:
    mib = 1 << 20
    state = found.state_bytes / mib

    def rates(seconds: list[float]) -> str:
        return ", ".join(f"{state / each:.0f}" for each in seconds)

    print(f"{found.parameters:,} parameters, {state:,.0f} MiB of state, load {found.load}")
    print(f"step      {rates(found.step_seconds)} MiB/s each way: {found.of_disk:.2f} of the disk")
    print(f"disk      {rates(found.disk_seconds)} MiB/s each way")
    print(f"save      {rates([found.save_seconds])} MiB/s each way")
    print(f"load      {rates([found.load_seconds])} MiB/s each way")
    print(f"resident  {rates([found.resident_seconds])} MiB/s, without any disk")
    print(f"memory    {found.peak_bytes / mib:.0f} MiB of {found.allowed_bytes / mib:.0f} allowed")
    print(f"cached    {found.page_cache_bytes / mib:.0f} MiB of the state")
    print(
        f"moved     {found.read_bytes / mib:.0f} MiB read, {found.written_bytes / mib:.0f} written"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=float, default=2e9)
    parser.add_argument("--memory", type=parse_bytes, default=4 << 30)
    parser.add_argument("--buffer", type=parse_bytes, default=DEFAULT_BUFFER_BYTES)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="of the disk; a temporary one by default")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
        found = measure(
            int(options.parameters),
            Path(folder),
            allowed=options.memory,
            buffer=options.buffer,
            steps=options.steps,
        )
    print_result(found)
    if options.json is not None:
        options.json.write_text(json.dumps(asdict(found), indent=1) + "\n")
    if found.peak_bytes > found.allowed_bytes:
        raise SystemExit("more memory than allowed")


if __name__ == "__main__":
    main()
