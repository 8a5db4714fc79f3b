"""Offloaded state is saved, loaded and copied like any other."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luma_core import LUMA, TurboAdam, checkpoint
from luma_core.errors import StateMismatchError, StorageError
from luma_core.optim.offload import Offloader
from luma_core.optim.offload.arena import is_blank

from .offloaded import (
    BUFFER_BYTES,
    MODES,
    OPTIMIZERS,
    assert_same,
    bits,
    named_parameters,
    resident,
    take_steps,
)

Options = dict[str, Any]
Choose = Callable[[str], Options]


@pytest.fixture(autouse=True)
def offload_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Offloader, "takes", lambda *_: True)


@pytest.fixture
def options_of(tmp_path: Path) -> Choose:
    """Return a function that returns the options of a mode, each time with a new directory."""
    made: list[Path] = []

    def choose(mode: str) -> Options:
        if mode == "resident":
            return {}
        found: Options = {"offload": mode, "offload_buffer_bytes": BUFFER_BYTES}
        if mode == "disk":
            made.append(tmp_path / f"state-{len(made)}")
            found["offload_directory"] = made[-1]
        return found

    return choose


PATHS = [*(("resident", mode) for mode in MODES), *((mode, "resident") for mode in MODES)]
PATHS += [("disk", "host"), ("disk", "disk")]


def load_into(named: list[Any], source: Any, target: Any, folder: Path, how: str) -> None:
    """Bring the state of an optimizer to another one, whose parameters come along."""
    if how == "state_dict":
        target.load_state_dict(source.state_dict())
        return
    handle = checkpoint.save(folder, optimizer=source, wait=how == "save")
    if how == "save behind":
        # What follows must not be in the checkpoint.
        take_steps(named, source, range(7, 8))
        handle.result()
    checkpoint.load(folder, optimizer=target)


@pytest.mark.parametrize("how", ["state_dict", "save", "save behind"])
@pytest.mark.parametrize(("first", "second"), PATHS)
def test_a_run_goes_on_from_saved_state(
    first: str, second: str, how: str, options_of: Choose, tmp_path: Path
) -> None:
    named = named_parameters()
    source = LUMA(named, lr=1e-2, seed=3, **options_of(first))
    take_steps(named, source, range(3))
    again = [(name, torch.nn.Parameter(param.detach().clone())) for name, param in named]
    target = LUMA(again, lr=1e-2, seed=9, **options_of(second))
    # Its state, which loading replaces, is in the step's slots.
    kept = [param.detach().clone() for _, param in again]
    take_steps(again, target, range(8, 10))
    load_into(named, source, target, tmp_path / "c", how)
    with torch.no_grad():
        for (_, param), value in zip(again, kept, strict=True):
            param.copy_(value)
    take_steps(again, target, range(3, 5))
    assert_same(bits(again, target), resident("luma", 5))


@pytest.mark.parametrize("mode", MODES)
def test_state_is_placed_again_after_it_was_loaded(mode: str, options_of: Choose) -> None:
    named = named_parameters()
    optimizer = LUMA(named, seed=3, **options_of(mode))
    take_steps(named, optimizer, range(2))
    saved = copy.deepcopy(optimizer.state_dict())
    for _ in range(3):
        optimizer.load_state_dict(saved)
        take_steps(named, optimizer, range(2, 3))
    assert optimizer.offloader is not None
    assert len(optimizer.offloader._arenas) == (mode != "cpu-step")


@pytest.mark.parametrize("mode", MODES)
def test_state_that_does_not_fit_changes_nothing(mode: str, options_of: Choose) -> None:
    named = named_parameters()
    optimizer = LUMA(named, lr=1e-2, seed=3, **options_of(mode))
    take_steps(named, optimizer, range(3))
    saved = copy.deepcopy(optimizer.state_dict())
    del saved["state"][4]["exp_avg.codes"]
    with pytest.raises(StateMismatchError, match="missing fields"):
        optimizer.load_state_dict(saved)
    take_steps(named, optimizer, range(3, 5))
    assert_same(bits(named, optimizer), resident("luma", 5))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["luma", "turboadam", "adam-mini"])
def test_adamw_state_is_imported_and_exported(kind: str, mode: str, options_of: Choose) -> None:
    found = []
    for chosen in ("resident", mode):
        named = named_parameters()
        adamw = torch.optim.AdamW(named)
        take_steps(named, adamw, range(2))
        optimizer = OPTIMIZERS[kind](named, lr=1e-2, seed=3, **options_of(chosen))
        optimizer.import_adamw_state(adamw.state_dict())  # type: ignore[attr-defined]
        take_steps(named, optimizer, range(2, 4))
        found.append(bits(named, optimizer))
        exported = optimizer.export_adamw_state()["state"]  # type: ignore[attr-defined]
        found[-1] |= {
            f"exported {index} {key}": value
            for index, entry in exported.items()
            for key, value in entry.items()
        }
    assert_same(found[1], found[0])


@pytest.mark.parametrize("mode", ["host", "cpu-step"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])  # noqa: S301
def test_a_copy_goes_on_by_itself(
    mode: str, copied: Callable[[Any], Any], options_of: Choose
) -> None:
    named = named_parameters()
    optimizer = LUMA(named, lr=1e-2, seed=3, **options_of(mode))
    take_steps(named, optimizer, range(3))
    other = copied(optimizer)
    assert other.offloader.mode == mode
    take_steps(named, optimizer, range(8, 9))
    own = [(name, param) for name, param, _ in other.parameters_by_name()]
    take_steps(own, other, range(3, 5))
    assert_same(bits(own, other), resident("luma", 5))


def test_a_copy_cannot_share_the_directory(options_of: Choose) -> None:
    optimizer = LUMA(named_parameters(), **options_of("disk"))
    with pytest.raises(StorageError, match="in use by another optimizer"):
        copy.deepcopy(optimizer)


@pytest.mark.parametrize("mode", MODES)
def test_state_made_ahead_is_that_of_the_first_step(mode: str, options_of: Choose) -> None:
    named = named_parameters()
    optimizer = TurboAdam(named, lr=1e-2, seed=3, **options_of(mode))
    optimizer.init_state()
    made = [value for entry in optimizer.state.values() for value in entry.values()]
    assert not any(map(is_blank, made))
    take_steps(named, optimizer, range(5))
    assert_same(bits(named, optimizer), resident("turboadam", 5))


@pytest.mark.parametrize("mode", MODES)
def test_state_that_is_read_is_that_of_the_last_step(mode: str, options_of: Choose) -> None:
    """Reading waits for what is on its way back, and what was fetched ahead stays valid."""
    named = named_parameters()
    plain = named_parameters()
    optimizer = LUMA(named, lr=1e-2, seed=3, **options_of(mode))
    beside = LUMA(plain, lr=1e-2, seed=3)
    for step in range(3):
        take_steps(named, optimizer, range(step, step + 1))
        take_steps(plain, beside, range(step, step + 1))
        for name, _ in named:
            here, there = optimizer.parameter_state(name), beside.parameter_state(name)
            assert (here.step, here.noise_key) == (there.step, there.noise_key)
            assert_same(dict(here.fields), dict(there.fields))
