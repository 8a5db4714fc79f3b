"""LAMB: Adam's update, scaled to the norm of each parameter, for training in large batches."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any, ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT

from luma_core.codecs import MIN_COMPRESS_ELEMENTS
from luma_core.optim.adamw_state import AdamWStateOptimizer
from luma_core.optim.offload import DEFAULT_BUFFER_BYTES, offload_options
from luma_core.optim.presets import preset_codecs
from luma_core.rules import LAMBRule, Rule


class LAMB(AdamWStateOptimizer):
    """LAMB (You et al., 2020) with its state in any codec; by default 4.02 bytes per parameter.

    Adam's update, with weight decay in it, is multiplied by the norm of its parameter over its own
    norm. docs/lamb.md has the formula and what the options are called elsewhere.

    Options that are not listed here, and the errors, are those of `LUMA`.

    Args:
        params: parameters, parameter groups, or ``model.named_parameters()``. A group may set any
            option below but ``backend`` for itself.
        lr: learning rate, a number or a tensor of one element.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        weight_decay: of the parameter that is added to the update, before the ratio is taken.
        codec: how the moments are stored: ``"luma16"``, ``"bf16"``, ``"fp32"``, or a mapping of
            ``"exp_avg"`` and ``"exp_avg_sq"`` to codec configurations with one block size.
        max_grad_norm: bound on the norm of all gradients of all groups together, to which a group's
            are scaled down; ``None`` leaves them as they are.
        trust_clip: whether the ratio is at most 1.
        always_adapt: whether groups without weight decay use the ratio too.
        bias_correction: whether the moments' bias towards zero is corrected.
        block_size: elements per scale of a codec given by name.
    """

    algorithm: ClassVar[str] = "lamb"
    rule: ClassVar[Rule] = LAMBRule()
    elementwise: ClassVar[bool] = False

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        *,
        codec: str | Mapping[str, Mapping[str, Any]] = "luma16",
        max_grad_norm: float | None = None,
        trust_clip: bool = False,
        always_adapt: bool = False,
        bias_correction: bool = True,
        backend: str = "auto",
        block_size: int | None = 128,
        min_compress_elements: int = MIN_COMPRESS_ELEMENTS,
        stochastic_rounding: bool = True,
        nonfinite: str = "skip",
        maximize: bool = False,
        capturable: bool = False,
        amsgrad: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        differentiable: bool = False,
        seed: int | str | None = None,
        offload: str | None = None,
        offload_directory: str | PathLike[str] | None = None,
        offload_buffer_bytes: int = DEFAULT_BUFFER_BYTES,
    ) -> None:
        self._storage = {"codec": codec, "block_size": block_size}
        kept = offload_options(offload, offload_directory, offload_buffer_bytes)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "max_grad_norm": max_grad_norm,
            "trust_clip": trust_clip,
            "always_adapt": always_adapt,
            "bias_correction": bias_correction,
            "min_compress_elements": min_compress_elements,
            "stochastic_rounding": stochastic_rounding,
            "nonfinite": nonfinite,
            "maximize": maximize,
            "capturable": capturable,
            "amsgrad": amsgrad,
            "foreach": foreach,
            "fused": fused,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults, backend=backend, seed=seed, offload=kept)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_storage": self._storage}

    def group_codecs(self, group: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the codec configuration of each moment for a new group's options."""
        chosen = {**self._storage, **group}
        return preset_codecs(chosen["codec"], block_size=chosen["block_size"])
