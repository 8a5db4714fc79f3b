"""LAMB: Adam's update, scaled to the norm of each parameter, for training in large batches."""

from __future__ import annotations

from typing import ClassVar, Unpack

from torch import Tensor
from torch.optim.optimizer import ParamsT

from luma_core.optim.adamw_state import AdamWStateOptimizer
from luma_core.optim.common_options import CommonKeywords, show_common_options
from luma_core.optim.presets import DEFAULT_BLOCK_SIZE, CodecChoice
from luma_core.rules import LAMBRule, Rule


@show_common_options
class LAMB(AdamWStateOptimizer):
    """LAMB (You et al., 2020) with its state in any codec; by default 4.02 bytes per parameter.

    Adam's update, with weight decay in it, is multiplied by the norm of its parameter over its own
    norm. docs/lamb.md has the formula and what the options are called elsewhere.

    Args:
        params: parameters, parameter groups, or ``model.named_parameters()``. A group may set any
            option below but ``backend`` for itself.
        lr: learning rate, a number or a tensor of one element.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        weight_decay: of the parameter that is added to the update, before the ratio is taken.
        codec: how the moments are stored, as `AdamW` takes it.
        max_grad_norm: bound on the norm of all gradients of all groups together, to which a group's
            are scaled down; ``None`` leaves them as they are.
        trust_clip: whether the ratio is at most 1.
        always_adapt: whether groups without weight decay use the ratio too.
        bias_correction: whether the moments' bias towards zero is corrected.
        block_size: elements per scale of codecs given by name.

    Raises:
        ConfigurationError: an option cannot work.
        StorageError: as in `AdamW`.
        UnsupportedParameterError: as in `AdamW`, or a parameter is a flat one of FSDP1.
    """

    algorithm: str = "lamb"
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
        codec: CodecChoice = "luma16",
        max_grad_norm: float | None = None,
        trust_clip: bool = False,
        always_adapt: bool = False,
        bias_correction: bool = True,
        block_size: int | None = DEFAULT_BLOCK_SIZE,
        **common: Unpack[CommonKeywords],
    ) -> None:
        own = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "max_grad_norm": max_grad_norm,
            "trust_clip": trust_clip,
            "always_adapt": always_adapt,
            "bias_correction": bias_correction,
        }
        storage = {"codec": codec, "block_size": block_size}
        super().__init__(params, own, storage=storage, **common)
