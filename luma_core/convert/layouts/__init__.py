"""How optimizers of other libraries keep AdamW's moments in their state dicts: one file each."""

from luma_core.convert.layouts.registry import LAYOUTS, Layout, layout_of

__all__ = ["LAYOUTS", "Layout", "layout_of"]
