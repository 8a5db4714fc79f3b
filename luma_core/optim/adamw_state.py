"""Optimizers whose state means the same as AdamW's, so that it can be exchanged with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luma_core.optim.base import CompressedOptimizer
from luma_core.optim.state_io import interchange
from luma_core.state import LoadReport


class AdamWStateOptimizer(CompressedOptimizer):
    """An optimizer whose moments are AdamW's two, with the options that go with them."""

    def export_adamw_state(self) -> dict[str, Any]:
        """Return the state as ``torch.optim.AdamW.state_dict()`` would, in float32.

        Takes 8 bytes per parameter on the parameters' devices. Note that AdamW's
        ``load_state_dict`` casts moments to the parameters' dtype.
        """
        return interchange.export_adamw_state(self)

    def import_adamw_state(
        self, state_dict: Mapping[str, Any], *, strict: bool = True
    ) -> LoadReport:
        """Replace the state by an AdamW ``state_dict``, coded by rounding to nearest.

        The groups' ``lr``, ``betas``, ``eps``, ``weight_decay`` and ``maximize`` are adopted, and
        what others put there, such as a scheduler's ``initial_lr``. Parameters are matched by name
        where both sides have names (``param_names``, or keys that are names), else by position.
        Importing what `export_adamw_state` returned restores every value bit for bit; but codecs
        of a few bits may code the second moment anew.

        Args:
            state_dict: what AdamW's ``state_dict()`` returned, or Adam's without weight decay.
            strict: as `load_state_dict` takes it.

        Raises:
            StateMismatchError: groups, names or shapes do not fit; nothing was changed.
            ConversionError: it is not AdamW's state, cannot be represented (``amsgrad``, Adam's
                weight decay in the gradient), or a step or moment has a value that no AdamW run
                could have; nothing was changed.
        """
        self.forget_steps()
        return interchange.import_adamw_state(self, state_dict, strict=strict)
