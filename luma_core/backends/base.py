"""What a backend is: it says what it has kernels for, takes steps and codes whole moments."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from luma_core.codecs import Codec, Fields
    from luma_core.rules import ParameterStep, Rule


class JointStep(Protocol):
    """The step of many parameters of one device together: it keeps tables of their tensors.

    Whoever calls `launch` has made sure that the tensors given to `build` are still the ones to
    step, and that `follow_gradients` was called where only gradients lie elsewhere.
    """

    def build(
        self, items: Sequence[tuple[Any, ...]], groups: Sequence[Mapping[str, Any]]
    ) -> list[bool]:
        """Take other parameters; return which of them the kernels step.

        Args:
            items: parameter, state, codecs, index of its group, index of its first element in the
                whole parameter, and what part it is of one whose other parts the step needs.
            groups: the optimizer's groups.
        """
        ...

    def follow_gradients(self) -> bool:
        """Enter the gradients' new addresses; return ``False`` where that takes a new `build`."""
        ...

    def square_sum(self) -> Tensor:
        """Return the sum of the finite squares of all gradients, float64 0-d."""
        ...

    def launch(
        self,
        groups: Sequence[Mapping[str, Any]],
        *,
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
        grad_norm: Tensor | None = None,
    ) -> None:
        """Take the step of every parameter that was taken."""
        ...


class Plan(Protocol):
    """The steps of many parameters on the CPU, described once: see `JointStep`."""

    def build(self, planned: Sequence[tuple[Any, ...]]) -> list[bool]:
        """Take other parameters; return which of them it steps.

        Args:
            planned: the next step of each, which stands for all that follow; its state; the index
                of its group; whether a moment is stored by a coarse codec.
        """
        ...

    def follow_gradients(self) -> bool:
        """Enter the gradients' new addresses; return ``False`` where that takes a new `build`."""
        ...

    def launch(self, groups: Sequence[Mapping[str, Any]], factors: Sequence[Tensor | None]) -> bool:
        """Take and count the steps; return ``False``, and change nothing, where it cannot.

        Args:
            groups: the optimizer's groups.
            factors: what the gradients of each group are multiplied by; ``None`` for 1.
        """
        ...


class Backend(ABC):
    """Takes steps and codes moments, on one kind of device or on any.

    Attributes:
        name: what the option ``backend`` calls it.
        device: the type of the devices that it serves; ``None`` for all.
        advantage: why it is taken where it can be.
    """

    name: ClassVar[str]
    device: ClassVar[str | None] = None
    advantage: ClassVar[str]

    def why_not_installed(self) -> str:
        """Return what its kernels lack that an installation may have; empty if nothing."""
        return ""

    def why_unavailable(self) -> str:
        """Return why it cannot be used on this machine; empty if it can."""
        return self.why_not_installed()

    @abstractmethod
    def check_available(self) -> None:
        """Check that it can be used on this machine, where it was asked for by name.

        Raises:
            BackendUnavailableError: it cannot.
        """

    @abstractmethod
    def why_no_kernel(self, rule: Rule, codecs: Mapping[str, Codec]) -> str:
        """Return why it has no kernel of a rule whose moments ``codecs`` store; empty if it has.

        That takes no device, but all that `why_not_installed` asks for.
        """

    def why_not(self, rule: Rule, codecs: Mapping[str, Codec], device: str) -> str:
        """Return why it cannot step contiguous parameters; empty if it can.

        Args:
            rule: the update rule.
            codecs: the codec of each moment.
            device: type of the parameters' device, such as ``"cpu"``.
        """
        if self.device not in (None, device):
            return f"there are no kernels for {device}"
        return self.why_unavailable() or self.why_no_kernel(rule, codecs)

    def step(self, rule: Rule, item: ParameterStep) -> Tensor | None:
        """Take one parameter's step: see `Rule.step_parameter`; ``None`` where it cannot."""
        return None

    def encode(self, codec: Codec, x: Tensor, draws: Tensor | None) -> Fields | None:
        """Store a whole moment: see `Codec.encode_tensor`; ``None`` where it cannot."""
        return None

    def decode(
        self, codec: Codec, fields: Mapping[str, Tensor], shape: tuple[int, ...]
    ) -> Tensor | None:
        """Return a whole moment: see `Codec.decode_tensor`; ``None`` where it cannot."""
        return None
