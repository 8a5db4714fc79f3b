"""Names are matched whatever wraps the model, and never where it is not known which is which."""

import pytest

from luma_core.errors import StateMismatchError
from luma_core.naming import match_names, unwrapped

PLAIN = ["a.weight", "block.0.weight", "block.1.weight"]
WRAPPED = {
    "compiled": ["_orig_mod.a.weight", "_orig_mod.block.0.weight", "_orig_mod.block.1.weight"],
    "ddp": ["module.a.weight", "module.block.0.weight", "module.block.1.weight"],
    "compiled ddp": [f"_orig_mod.module.{name}" for name in PLAIN],
    "ddp of compiled": [f"module._orig_mod.{name}" for name in PLAIN],
    "fsdp1 inside": [
        "_fsdp_wrapped_module.a.weight",
        "_fsdp_wrapped_module.block.0._fsdp_wrapped_module._checkpoint_wrapped_module.weight",
        "_fsdp_wrapped_module.block.1._fsdp_wrapped_module.weight",
    ],
    "a block under ddp": ["a.weight", "block.0.module.weight", "block.1._orig_mod.weight"],
}


@pytest.mark.parametrize("saved", WRAPPED.values(), ids=WRAPPED.keys())
@pytest.mark.parametrize("own", [PLAIN, WRAPPED["compiled ddp"]], ids=["plain", "wrapped"])
def test_any_wrapping_matches_any_other(own: list[str], saved: list[str]) -> None:
    assert match_names(own, saved[::-1]) == dict(zip(own, saved, strict=True))
    assert match_names(saved, own[::-1]) == dict(zip(saved, own, strict=True))


@pytest.mark.parametrize("root", ["module.", "_orig_mod.", "module._orig_mod.", ""])
def test_a_submodule_called_module_stays_itself(root: str) -> None:
    """Name by name, the wrapped ``module.w`` would be taken for the other parameter's."""
    own = ["w", "module.w", "module.module.w"]
    saved = [root + name for name in own]
    assert match_names(own, saved) == dict(zip(own, saved, strict=True))
    assert match_names(saved, own) == dict(zip(saved, own, strict=True))


def test_names_are_left_alone_where_they_are_equal() -> None:
    names = ["x.module.w", "x.w", "_orig_mod.x.w", "module"]
    assert match_names(names, names) == {name: name for name in names}
    assert unwrapped("module.module") == "module"


def test_a_part_of_the_names_is_matched_by_the_reading_that_finds_most() -> None:
    own = ["module.w", "module.module.w", "module.new"]
    assert match_names(own, ["w", "module.w", "old"]) == {
        "module.w": "w",
        "module.module.w": "module.w",
    }
    assert match_names(["a"], ["b"]) == {}
    assert match_names([], ["b"]) == {}


@pytest.mark.parametrize(
    ("own", "saved"),
    [
        (["x.module.w", "x.w", "module.y"], ["x.w", "y", "z"]),
        (["x.w", "y"], ["x.module.w", "x.w.module", "module.x.w", "module.y"]),
    ],
)
def test_names_that_wrappers_alone_tell_apart_are_refused(own: list[str], saved: list[str]) -> None:
    with pytest.raises(StateMismatchError, match="it is not known whose state is whose"):
        match_names(own, saved)


def test_thousands_of_names_are_read_a_few_times_each() -> None:
    """Linear: comparing every name with every other would read each of them thousands of times."""
    reads = 0

    class Name(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            nonlocal reads
            reads += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    own = [Name(f"a.{i}.weight") for i in range(2000)]
    saved = [Name(f"b.{i}.weight") for i in range(2000)]
    assert match_names(own, saved) == {}
    assert reads < 20 * 4000
