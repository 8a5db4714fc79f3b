"""Every error the project raises on purpose.

    LumaError
    ├── ConfigurationError (ValueError)        an argument or option has a value that cannot work
    │   ├── UnknownCodecError                  no codec is registered under that name
    │   ├── NameTakenError                     what is registered has the name of something else
    │   └── BackendUnavailableError            an explicitly requested backend cannot run here
    ├── UnsupportedParameterError (TypeError)  a parameter's or gradient's kind is not supported
    │   └── UnsupportedGradientError (RuntimeError)  a gradient's, as PyTorch's optimizers raise it
    ├── NonFiniteGradientError (ArithmeticError)  raised by ``nonfinite="raise"`` before any update
    ├── StateMismatchError (ValueError)        state does not fit the parameters it is loaded into
    ├── ConversionError (ValueError)           a foreign file cannot be turned into state, or back
    │   └── UnsafePickleError                  the file needs arbitrary code to be unpickled
    ├── CheckpointError
    │   ├── CheckpointNotFoundError (FileNotFoundError)
    │   ├── CheckpointExistsError (FileExistsError)
    │   ├── ConcurrentSaveError                another saver is, or was, at work in the same place
    │   │   └── CheckpointReplacedError        what was opened is not there any more
    │   ├── StateChangedError                  state changed while a save was reading it
    │   ├── CorruptCheckpointError             a checksum, size, header or manifest is wrong
    │   │   └── BrokenChainError               the base of a checkpoint is missing or changed
    │   ├── UnsupportedVersionError            written by a newer version of the format
    │   ├── UnsafeNameError                    a name that could leave its folder
    │   └── StorageError (OSError)             the store failed: full disk, permissions
    └── ServiceError (OSError)                 the server answered with an error, or not at all

A message gives the argument, its value and the requirement; ``hint`` says how to mend it.
"""

from __future__ import annotations

from collections.abc import Sequence


class LumaError(Exception):
    """Base of all errors of this project.

    Attributes:
        message: what was wrong, in one sentence, naming the argument and its value.
        hint: what to do about it, in one sentence; empty where nothing helps.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class ConfigurationError(LumaError, ValueError):
    """An argument or option has a value that cannot work."""


class UnknownCodecError(ConfigurationError):
    """No codec is registered under the given name."""


class NameTakenError(ConfigurationError):
    """A codec or format is registered under a name that another one has."""


class BackendUnavailableError(ConfigurationError):
    """An explicitly requested backend cannot run here."""


class UnsupportedParameterError(LumaError, TypeError):
    """A parameter or gradient is of a kind (dtype, layout) that is not supported."""


class UnsupportedGradientError(UnsupportedParameterError, RuntimeError):
    """A gradient is sparse or complex, or of a parameter that cannot be stepped."""


class NonFiniteGradientError(LumaError, ArithmeticError):
    """A gradient holds NaN or infinity and the group asks for ``nonfinite="raise"``."""


class StateMismatchError(LumaError, ValueError):
    """State does not fit the parameters it is loaded into."""


class ConversionError(LumaError, ValueError):
    """A foreign file cannot be turned into optimizer state, or state into that format."""


class UnsafePickleError(ConversionError):
    """A file could only be read by running code it contains."""


class CheckpointError(LumaError):
    """A checkpoint cannot be read or written."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no committed checkpoint at that place."""


class CheckpointExistsError(CheckpointError, FileExistsError):
    """There is a checkpoint at that place already."""


class ConcurrentSaveError(CheckpointError):
    """Another saver is at work in the same folder, or committed there in the meantime."""


class CheckpointReplacedError(ConcurrentSaveError):
    """A checkpoint was replaced or removed, by whoever may do that, while it was being read."""


class StateChangedError(CheckpointError):
    """State was changed in place, by no step, while an asynchronous save was reading it."""


class CorruptCheckpointError(CheckpointError):
    """A file of a checkpoint is missing, cut, altered or inconsistent."""


class BrokenChainError(CorruptCheckpointError):
    """A checkpoint holds differences to another one, which is missing or not the same any more."""


class UnsupportedVersionError(CheckpointError):
    """A checkpoint was written by a newer version of the format."""


class UnsafeNameError(CheckpointError):
    """A file, run or step name could point outside its folder."""


class StorageError(CheckpointError, OSError):
    """The store failed: a full disk, missing permissions, an unknown kind of location."""


class ServiceError(LumaError, OSError):
    """The server answered with an error, or not at all.

    Attributes:
        status: HTTP status code, or ``None`` where no answer came.
    """

    def __init__(self, message: str, *, hint: str = "", status: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


def some_names(names: Sequence[str]) -> str:
    """Return the first names for a message: ``'a', 'b', 'c' and 2 more``, or ``none``."""
    if not names:
        return "none"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more
