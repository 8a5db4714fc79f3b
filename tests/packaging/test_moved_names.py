"""Names that have moved are found where they were for one version, with a warning."""

import importlib

import pytest

from luma_core import convert

CHECKPOINT = "luma_core.checkpoint"
MOVED = [
    ("luma_core.checkpoint", "luma_core.checkpoint.format", "parse_manifest"),
    ("luma_core.checkpoint", "luma_core.checkpoint.format", "MANIFEST_NAME"),
    ("luma_core.checkpoint", "luma_core.checkpoint.format", "MAX_CHAIN"),
    ("luma_core.checkpoint", "luma_core.checkpoint.format", "BaseEntry"),
    ("luma_core.checkpoint", "luma_core.checkpoint.format", "Chunk"),
    ("luma_core.checkpoint", "luma_core.checkpoint.format", "FileEntry"),
    ("luma_core.checkpoint", "luma_core.checkpoint.format", "ParameterEntry"),
    ("luma_core.checkpoint", "luma_core.checkpoint.format", "TensorEntry"),
    ("luma_core.checkpoint", "luma_core.checkpoint.storage", "check_name"),
    ("luma_core.checkpoint.store", "luma_core.checkpoint.storage.store", "Store"),
    ("luma_core.checkpoint.store", "luma_core.checkpoint.storage.open", "open_store"),
    (
        "luma_core.checkpoint.testing",
        "luma_core.testing.store",
        "StoreConformance",
    ),
    ("luma_core.optim", "luma_core.rules", "AdamWHyper"),
    ("luma_core.optim", "luma_core.rules", "AdamWRule"),
]


@pytest.mark.parametrize(("old", "new", "name"), MOVED)
def test_an_old_name_is_the_new_one_and_says_so(old: str, new: str, name: str) -> None:
    module = importlib.import_module(old)
    with pytest.warns(DeprecationWarning, match=rf"{old}\.{name} is {new}\.{name} now") as caught:
        found = getattr(module, name)
    assert found is getattr(importlib.import_module(new), name)
    assert caught[0].filename == __file__
    assert name not in dir(module)


def test_what_was_renamed_is_found_too() -> None:
    with pytest.warns(DeprecationWarning, match=r"is luma_core\.convert\.ConvertOptions now"):
        assert convert.SinkOptions is convert.ConvertOptions


@pytest.mark.parametrize("module", sorted({old for old, _, _ in MOVED}))
def test_what_was_never_there_is_no_attribute(module: str) -> None:
    assert not hasattr(importlib.import_module(module), "nothing")
