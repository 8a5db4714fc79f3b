"""Lion: steps of one size in the direction of one moment's sign."""

from __future__ import annotations

from typing import ClassVar, Unpack

from torch import Tensor
from torch.optim.optimizer import ParamsT

from luma_core.optim.base import CompressedOptimizer
from luma_core.optim.common_options import CommonKeywords, show_common_options
from luma_core.optim.presets import DEFAULT_BLOCK_SIZE, CodecChoice
from luma_core.rules import Rule
from luma_core.rules.lion import LionRule


@show_common_options
class Lion(CompressedOptimizer):
    """Lion (Chen et al., 2023) with its one moment in any codec; by default 2.01 bytes a parameter.

    Every element moves by ``lr``, in the direction of the sign of a mean of moment and gradient, so
    learning rates are 3 to 10 times smaller than AdamW's, and weight decay as much larger.

    Args:
        params: parameters, parameter groups, or ``model.named_parameters()``. A group may set any
            option below but ``backend`` for itself.
        lr: learning rate, a number or a tensor of one element.
        betas: weight of the moment in the update, and in the new moment.
        weight_decay: decoupled weight decay.
        codec: how the moment is stored: a preset as `AdamW` takes it, or a mapping of ``"exp_avg"``
            to a codec of signed moments.
        block_size: elements per scale of codecs given by name.

    Raises:
        ConfigurationError: an option cannot work.
        StorageError: as in `AdamW`.
        UnsupportedParameterError: as in `AdamW`.
    """

    algorithm: str = "lion"
    rule: ClassVar[Rule] = LionRule()

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.01,
        *,
        codec: CodecChoice = "luma16",
        block_size: int | None = DEFAULT_BLOCK_SIZE,
        **common: Unpack[CommonKeywords],
    ) -> None:
        super().__init__(
            params,
            {"lr": lr, "betas": betas, "weight_decay": weight_decay},
            storage={"codec": codec, "block_size": block_size},
            **common,
        )
