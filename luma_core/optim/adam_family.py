"""Adam's relatives: AdamW's state, and updates that differ by a few factors of a step."""

from __future__ import annotations

from typing import ClassVar, Unpack

from torch import Tensor
from torch.optim.optimizer import ParamsT

from luma_core.optim.adamw_state import AdamWStateOptimizer
from luma_core.optim.common_options import CommonKeywords, show_common_options
from luma_core.optim.presets import DEFAULT_BLOCK_SIZE, CodecChoice
from luma_core.rules import Rule
from luma_core.rules.adam import AdamRule
from luma_core.rules.nadamw import NAdamWRule
from luma_core.rules.qhadamw import QHAdamWRule
from luma_core.rules.radam import RAdamRule


@show_common_options
class Adam(AdamWStateOptimizer):
    """Adam (Kingma and Ba, 2015) with its state in any codec, as ``torch.optim.Adam``.

    Weight decay is added to the gradient, so it is in both moments: with it, state is not AdamW's.

    Args:
        params: as `AdamW` takes it.
        lr: learning rate, a number or a tensor of one element.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        weight_decay: weight decay.
        decoupled_weight_decay: take weight decay off the parameter, as AdamW does, instead.
        codec: as `AdamW` takes it.
        block_size: as `AdamW` takes it.

    Raises:
        ConfigurationError: an option cannot work.
        StorageError: as in `AdamW`.
        UnsupportedParameterError: as in `AdamW`.
    """

    algorithm: str = "adam"
    rule: ClassVar[Rule] = AdamRule()

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        decoupled_weight_decay: bool = False,
        codec: CodecChoice = "luma16",
        block_size: int | None = DEFAULT_BLOCK_SIZE,
        **common: Unpack[CommonKeywords],
    ) -> None:
        own = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, own, storage={"codec": codec, "block_size": block_size}, **common)


@show_common_options
class RAdam(AdamWStateOptimizer):
    """RAdam (Liu et al., 2020) with its state in any codec, as ``torch.optim.RAdam``.

    In the first five steps, with usual ``betas``, the update is the first moment itself, which no
    root divides: it is as large as gradients are.

    Args:
        params: as `AdamW` takes it.
        lr: learning rate, a number or a tensor of one element.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment as it is stored, whose bias is not corrected.
        weight_decay: weight decay, added to the gradient.
        decoupled_weight_decay: take weight decay off the parameter, as AdamW does, instead.
        codec: as `AdamW` takes it.
        block_size: as `AdamW` takes it.

    Raises:
        ConfigurationError: an option cannot work.
        StorageError: as in `AdamW`.
        UnsupportedParameterError: as in `AdamW`.
    """

    algorithm: str = "radam"
    rule: ClassVar[Rule] = RAdamRule()

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        decoupled_weight_decay: bool = False,
        codec: CodecChoice = "luma16",
        block_size: int | None = DEFAULT_BLOCK_SIZE,
        **common: Unpack[CommonKeywords],
    ) -> None:
        own = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, own, storage={"codec": codec, "block_size": block_size}, **common)


@show_common_options
class NAdamW(AdamWStateOptimizer):
    """NAdamW (Dozat, 2016; Choi et al., 2019): AdamW with Nesterov's momentum, in any codec.

    Args:
        params: as `AdamW` takes it.
        lr: learning rate, a number or a tensor of one element.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay.
        momentum_decay: schedule of the momentum as ``torch.optim.NAdam`` has it, whose default is
            4e-3 (with ``lr=2e-3``, ``weight_decay=0`` and ``decoupled_weight_decay=True``);
            ``None`` keeps the momentum at ``betas[0]``.
        codec: as `AdamW` takes it.
        block_size: as `AdamW` takes it.

    Raises:
        ConfigurationError: an option cannot work.
        StorageError: as in `AdamW`.
        UnsupportedParameterError: as in `AdamW`.
    """

    algorithm: str = "nadamw"
    rule: ClassVar[Rule] = NAdamWRule()

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        momentum_decay: float | None = None,
        codec: CodecChoice = "luma16",
        block_size: int | None = DEFAULT_BLOCK_SIZE,
        **common: Unpack[CommonKeywords],
    ) -> None:
        own = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum_decay": momentum_decay,
        }
        super().__init__(params, own, storage={"codec": codec, "block_size": block_size}, **common)


@show_common_options
class QHAdamW(AdamWStateOptimizer):
    """QHAdamW (Ma and Yarats, 2019) with its state in any codec.

    Args:
        params: as `AdamW` takes it.
        lr: learning rate, a number or a tensor of one element.
        betas: decay rates of the two moments.
        nus: weight of the first moment in the update, where the gradient has the rest, and of the
            second moment under the root, where the gradient's square has the rest. ``(1, 1)`` is
            AdamW.
        eps: added to the root.
        weight_decay: decoupled weight decay.
        codec: as `AdamW` takes it.
        block_size: as `AdamW` takes it.

    Raises:
        ConfigurationError: an option cannot work.
        StorageError: as in `AdamW`.
        UnsupportedParameterError: as in `AdamW`.
    """

    algorithm: str = "qhadamw"
    rule: ClassVar[Rule] = QHAdamWRule()

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        nus: tuple[float, float] = (1.0, 1.0),
        codec: CodecChoice = "luma16",
        block_size: int | None = DEFAULT_BLOCK_SIZE,
        **common: Unpack[CommonKeywords],
    ) -> None:
        own = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "nus": nus,
        }
        super().__init__(params, own, storage={"codec": codec, "block_size": block_size}, **common)
