"""The name that `luma_core.checkpoint.storage.store` had."""

from luma_core.moved import give_moved_module

__getattr__ = give_moved_module(
    __name__, "luma_core.checkpoint.storage.store", "luma_core.checkpoint.storage.open"
)
