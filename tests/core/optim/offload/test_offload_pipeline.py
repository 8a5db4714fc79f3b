"""State is fetched ahead in the order of the last step, and never from a slot that is in use."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from luma_core.optim.offload.pipeline import Chunk, Move, Pipeline

NBYTES = 64


class Recorder:
    """A mover whose transfers are lines of a log; each token is what was logged."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.after: dict[str, list[str]] = {}

    def slot(self, nbytes: int) -> Tensor:
        return torch.zeros(nbytes, dtype=torch.uint8)

    def bind(self, moves: Sequence[Move], slot: Tensor) -> Any:
        return moves

    def _name(self, bound: Sequence[Move]) -> str:
        return chr(int(bound[0].home[0]))

    def fetch(self, bound: Any, after: Sequence[str]) -> str:
        token = f"fetch {self._name(bound)}"
        self.after[token] = list(after)
        self.log.append(token)
        return token

    def wait(self, token: str) -> None:
        self.log.append(f"wait {token}")

    def ready(self, bound: Any, token: str) -> None:
        assert token == f"fetch {self._name(bound)}"
        self.log.append(f"ready {self._name(bound)}")

    def store(self, bound: Any) -> str:
        self.log.append(f"store {self._name(bound)}")
        return self.log[-1]

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def forget(self) -> None:
        self.log.append("forget")


def made(slots: int, names: str) -> tuple[Pipeline, Recorder, list[Chunk]]:
    recorder = Recorder()
    pipeline = Pipeline(recorder, buffer_bytes=slots * NBYTES, slots=slots)
    pipeline.reserve(NBYTES)
    recorder.log.clear()
    homes = [torch.full((NBYTES,), ord(name), dtype=torch.uint8) for name in names]
    return pipeline, recorder, [pipeline.chunk([Move(home, 0)]) for home in homes]


def step(pipeline: Pipeline, recorder: Recorder, chunks: list[Chunk]) -> list[str]:
    recorder.log.clear()
    for chunk in chunks:
        pipeline.run(chunk, lambda: recorder.log.append("step"))
    return [line for line in recorder.log if line.startswith(("fetch", "step"))]


def test_the_first_step_fetches_what_it_needs_and_the_next_ones_ahead() -> None:
    pipeline, recorder, chunks = made(2, "abcd")
    first = step(pipeline, recorder, chunks)
    assert first == [line for name in "abcd" for line in (f"fetch {name}", "step")]
    # That a follows d is known once it did.
    second = step(pipeline, recorder, chunks)
    assert second[:2] == ["fetch a", "step"]
    for _ in range(2):
        # a and b are there, and the slot of each step is filled for the next that uses it.
        ahead = ["step", "fetch c", "step", "fetch d", "step", "fetch a", "step", "fetch b"]
        assert step(pipeline, recorder, chunks) == ahead


def test_each_state_is_fetched_once_a_step() -> None:
    """With a number of slots that divides nothing."""
    pipeline, recorder, chunks = made(3, "abcdefgh")
    for _ in range(2):
        step(pipeline, recorder, chunks)
    for _ in range(3):
        lines = step(pipeline, recorder, chunks)
        assert lines.count("step") == 8
        assert sorted(line for line in lines if line != "step") == [
            f"fetch {name}" for name in "abcdefgh"
        ]
        # Nothing is fetched only when its turn has come.
        for at, line in enumerate(recorder.log):
            assert not line.startswith("ready") or recorder.log[at - 1] != f"fetch {line[-1]}"


def test_what_fits_stays_and_is_not_fetched_again() -> None:
    pipeline, recorder, chunks = made(4, "abc")
    step(pipeline, recorder, chunks)
    assert step(pipeline, recorder, chunks) == ["step"] * 3
    assert recorder.log.count("store a") == 1


def test_a_fetch_waits_for_what_the_slot_held_and_for_its_own_way_back() -> None:
    pipeline, recorder, chunks = made(2, "abcd")
    step(pipeline, recorder, chunks)
    assert recorder.after["fetch a"] == []
    assert set(recorder.after["fetch c"]) == {"store a", "fetch a"}
    step(pipeline, recorder, chunks)
    assert {"store c", "store a"} <= set(recorder.after["fetch a"])


def test_a_slot_whose_fetch_is_still_to_be_used_is_left_alone() -> None:
    pipeline, recorder, chunks = made(2, "abcd")
    for _ in range(3):
        step(pipeline, recorder, chunks)
    pending = {id(slot): slot.chunk for slot in pipeline._slots}
    assert list(pending.values()) == chunks[:2]
    # c and d are expected next in those slots, but a and b were not stepped.
    pipeline._fetch_ahead(chunks[1])
    assert {id(slot): slot.chunk for slot in pipeline._slots} == pending


def test_another_order_is_right_and_learned() -> None:
    pipeline, recorder, chunks = made(2, "abcd")
    for _ in range(2):
        step(pipeline, recorder, chunks)
    for order in ([3, 0, 2, 1], [3, 0, 2, 1], [1, 1, 3]):
        steps = step(pipeline, recorder, [chunks[index] for index in order])
        assert steps.count("step") == len(order)
        readied = [line[-1] for line in recorder.log if line.startswith("ready")]
        assert readied == ["abcd"[index] for index in order]


def test_what_was_fetched_is_not_used_after_forgetting() -> None:
    pipeline, recorder, chunks = made(4, "abc")
    step(pipeline, recorder, chunks)
    pipeline.forget()
    assert recorder.log[-1] == "forget"
    assert step(pipeline, recorder, chunks)[0] == "fetch a"
    assert all(f"fetch {name}" in recorder.log for name in "abc")


@pytest.mark.parametrize(
    ("largest", "slots", "memory"),
    [(10, 8, 800), (100, 8, 800), (250, 3, 750), (399, 2, 798), (1000, 2, 2000)],
)
def test_slots_take_what_is_allowed_and_at_least_two_of_the_largest(
    largest: int, slots: int, memory: int
) -> None:
    pipeline = Pipeline(Recorder(), buffer_bytes=800, slots=8)
    pipeline.reserve(largest)
    assert len(pipeline._slots) == slots
    assert pipeline.memory_bytes == memory


def test_slots_that_grow_are_of_another_generation() -> None:
    pipeline = Pipeline(Recorder(), buffer_bytes=800, slots=8)
    pipeline.reserve(50)
    generation = pipeline.generation
    pipeline.reserve(100)
    assert pipeline.generation == generation
    pipeline.reserve(101)
    assert pipeline.generation == generation + 1
