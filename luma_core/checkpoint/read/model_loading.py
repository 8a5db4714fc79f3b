"""Weights into a model, as its `load_state_dict` would restore them, mostly one at a time.

Most modules only copy each stored tensor into the parameter or buffer of that name, which is done
here without holding the others. A module that loads in a way of its own, by a hook or a method,
gets its state dict from PyTorch itself: what is stored for it and all inside it is then in memory
at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from luma_core.checkpoint.format.dtypes import dtype_name
from luma_core.checkpoint.format.extra import restore_extra
from luma_core.checkpoint.format.manifest import Manifest, TensorEntry
from luma_core.checkpoint.format.model import VALUE_MARK, check_names, memory_of
from luma_core.errors import ConfigurationError, CorruptCheckpointError, StateMismatchError
from luma_core.naming import match_names
from luma_core.state import LoadReport

Read = Callable[[TensorEntry], Tensor]

# What they do beside copying concerns state dicts of other names or versions, or no values at all.
_PLAIN_METHODS = {kind._load_from_state_dict for kind in (nn.Module, _NormBase, _InstanceNorm)}
_PLAIN_HOOKS = (
    "torch.distributed.fsdp._fully_shard",
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper",
)


class _Slot(NamedTuple):
    """A parameter or buffer.

    Attributes:
        module: that has it.
        name: its name there.
    """

    module: nn.Module
    name: str

    @property
    def tensor(self) -> Tensor:
        """What is there now."""
        found: Tensor = getattr(self.module, self.name)
        return found


class _Own(NamedTuple):
    """A module that loads in a way of its own, and the prefix of its names."""

    prefix: str
    module: nn.Module


class ModelLoad:
    """What is to be loaded into a model, known to fit as far as that can be told before.

    Args:
        manifest: of the checkpoint.
        model: receives the weights.
        held: parameters that others hold, and which must stay the model's.
        elsewhere: keys of the state dicts of other processes' models. What is stored under those
            that this one lacks is left to them.
        strict: whether all must have a counterpart of the same shape and dtype; if not, tensors
            without one are left out.

    Names are matched whatever wrappers each side has (`luma_core.naming`).

    Raises:
        StateMismatchError: names, shapes or dtypes differ; says which and what was expected.
        ConfigurationError: a parameter of ``held`` is on the meta device.
    """

    def __init__(
        self,
        manifest: Manifest,
        model: nn.Module,
        held: Iterable[Tensor] = (),
        elsewhere: Collection[str] = (),
        *,
        strict: bool = True,
    ) -> None:
        self._model = model
        self._entries = stored = {entry.name: entry for entry in manifest.tensors_of("model")}
        if not stored:
            raise StateMismatchError(
                "the checkpoint holds no model weights.", hint="Load it without model=."
            )
        self._entries |= {alias: stored[name] for alias, name in manifest.aliases.items()}
        self._strict = strict
        self._own = model.state_dict()
        self._found = self._named_here(set(elsewhere) - self._own.keys())
        self._slots: dict[str, _Slot] = {}
        self._states: dict[str, nn.Module] = {}
        self._special: list[_Own] = []
        self._walk(model, "")
        self._targets = self._checked_targets()
        self._refuse_held({id(tensor) for tensor in held})

    def _named_here(self, elsewhere: set[str]) -> dict[str, str]:
        """Put entries under this model's keys; return saved keys by those, without others'."""
        saved = list(dict.fromkeys(name.partition(VALUE_MARK)[0] for name in self._entries))
        matched = match_names([*self._own, *sorted(elsewhere)], saved)
        here = {key: own for own, key in matched.items()}
        entries = {}
        for name, entry in self._entries.items():
            key, mark, pointer = name.partition(VALUE_MARK)
            entries[f"{here.get(key, key)}{mark}{pointer}"] = entry
        self._entries = entries
        return {own: key for key in saved if (own := here.get(key, key)) not in elsewhere}

    def _walk(self, module: nn.Module, prefix: str) -> None:
        if _loads_on_its_own(module, root=not prefix):
            self._special.append(_Own(prefix, module))
            return
        for name in (*module._parameters, *module._buffers):
            kept = name not in module._non_persistent_buffers_set
            if kept and isinstance(getattr(module, name), Tensor):
                self._slots[prefix + name] = _Slot(module, name)
        if type(module).set_extra_state is not nn.Module.set_extra_state:
            self._states[f"{prefix}_extra_state"] = module
        for name, child in module._modules.items():
            if child is not None:
                self._walk(child, f"{prefix}{name}.")

    def _is_special(self, key: str) -> bool:
        return any(key.startswith(own.prefix) for own in self._special)

    def _checked_targets(self) -> dict[str, Tensor | _Slot]:
        """Return the tensor into which each stored tensor is copied."""
        plain = [key for key in self._found if not self._is_special(key)]
        if self._strict:
            check_names("model tensors", [k for k in self._own if not self._is_special(k)], plain)
        tensors = (*self._model.parameters(), *self._model.buffers())
        memory = {memory_of(tensor) for tensor in tensors if not is_lazy(tensor)}
        targets: dict[str, Tensor | _Slot] = {}
        for key in plain:
            if key in self._states or key not in self._own:
                continue
            own = self._own[key]
            # Wrappers that only rename show the memory itself under the other name.
            target = self._slots.get(key, own)
            if isinstance(target, Tensor) and memory_of(target) not in memory:
                raise StateMismatchError(
                    f"model tensor {key!r} is in the model's state dict, but loading one would not "
                    "set it.",
                    hint="Give the module set_extra_state, or a hook that loads it.",
                )
            if self._fits(key, own, target if isinstance(target, Tensor) else target.tensor):
                targets[key] = target
        return targets

    def _fits(self, key: str, own: Tensor, target: Tensor) -> bool:
        """Return whether what is stored has the shape and dtype of a tensor, which it must have."""
        entry = self._entries.get(key)
        found = None if entry is None else (entry.dtype, entry.shape)
        expected = (dtype_name(own.dtype), tuple(own.shape))
        if found != expected:
            if not self._strict:
                return False
            has = "no tensor" if found is None else f"{found[0]} {list(found[1])}"
            raise StateMismatchError(
                f"model tensor {key!r}: the checkpoint has {has}; "
                f"the model has {expected[0]} {list(expected[1])}."
            )
        sizes = zip(target.shape, target.stride(), strict=True)
        if any(size > 1 and stride == 0 for size, stride in sizes):
            raise StateMismatchError(
                f"model tensor {key!r} shows the same memory several times, so nothing can be "
                "copied into it.",
                hint="Make it contiguous.",
            )
        return True

    def _refuse_held(self, held: set[int]) -> None:
        for name, tensor in _replaced(self._model, self._special):
            if id(tensor) in held:
                raise ConfigurationError(
                    f"model parameter {name!r} is on the meta device, and loading replaces it; the "
                    "optimizer would go on with the one that was replaced.",
                    hint="Load the model first, then build the optimizer and load that; or call "
                    "model.to_empty(device=...) before.",
                )

    @torch.no_grad()
    def run(
        self,
        read: Read,
        *,
        fill: Callable[[Tensor, TensorEntry], object] | None = None,
        like: Callable[[TensorEntry, Any], Tensor] | None = None,
    ) -> LoadReport:
        """Load; return which weights of the model, and which stored ones, found no counterpart.

        Args:
            read: returns a stored tensor.
            fill: copies a stored tensor into another, which may be cut; `read` does by default.
            like: returns a stored tensor as the model has it in its state dict.

        Raises:
            StateMismatchError: a module does not take what is stored for it; it, and modules
                before it, may have changed.
        """
        fill = fill or (lambda target, entry: target.copy_(read(entry)))
        like = like or (lambda entry, _: read(entry))
        new: list[str] = []
        for own in self._special:
            new += self._load_special(own, read, like)
        replaced: dict[int, Tensor] = {}
        for key, target in self._targets.items():
            if isinstance(target, _Slot) and target.tensor.is_meta:
                old = target.tensor
                # Tied weights stay tied, unlike by load_state_dict(assign=True).
                if id(old) not in replaced:
                    replaced[id(old)] = _as_it_was(old, like(self._entries[key], old))
                setattr(target.module, target.name, replaced[id(old)])
            else:
                fill(target if isinstance(target, Tensor) else target.tensor, self._entries[key])
        for key, module in self._states.items():
            if key in self._found:
                module.set_extra_state(self._value(key, read, like))
        return self._report(new)

    def _report(self, new: list[str]) -> LoadReport:
        """Return the keys without counterpart, given those that modules with own loaders lacked."""
        taken = {*self._targets, *(self._states.keys() & self._found)}
        taken |= {key for key in self._found.keys() & self._own if self._is_special(key)}
        used = {self._entries[key].name for key in taken & self._entries.keys()}
        left_out = [
            saved
            for key, saved in self._found.items()
            if key not in taken and not (key in self._entries and self._entries[key].name in used)
        ]
        new = [*new, *(k for k in self._own if k not in taken and not self._is_special(k))]
        return LoadReport(new=tuple(new), left_out=tuple(left_out))

    def _load_special(
        self, own: _Own, read: Read, like: Callable[[TensorEntry, Any], Tensor]
    ) -> list[str]:
        """Hand a module what is stored for it; return the keys that it lacks."""
        names = [key for key in self._found if key.startswith(own.prefix)]
        values = _StateDict({key: self._value(key, read, like) for key in names})
        same = set(names) == {key for key in self._own if key.startswith(own.prefix)}
        # Versions of modules are not stored; names that are all there speak for those of now.
        values._metadata = getattr(self._own, "_metadata", None) if same else None
        assign = any(t.is_meta for t in (*own.module.parameters(), *own.module.buffers()))
        # Modules inside see the names they would see if the whole model were loaded.
        holder = own.module
        for name in reversed(own.prefix.split(".")[:-1]):
            outer = nn.Module()
            outer._modules[name] = holder
            holder = outer
        try:
            options = {"assign": True} if assign else {}
            if not self._strict:
                options["strict"] = False
            found = holder.load_state_dict(values, **options)
        except RuntimeError as error:
            raise StateMismatchError(
                f"the model does not take what the checkpoint has for it: {error}",
                hint="Load into the same model as was saved. Parts of this one may have changed.",
            ) from error
        return list(getattr(found, "missing_keys", ()))

    def _value(self, key: str, read: Read, like: Callable[[TensorEntry, Any], Tensor]) -> Any:
        """Return what is stored under a key of the state dict."""
        if key in self._entries:
            return like(self._entries[key], self._own.get(key))
        where = f"model value {key!r}"

        def tensor(pointer: str) -> Tensor:
            entry = self._entries.get(f"{key}{VALUE_MARK}{pointer}")
            if entry is None:
                raise CorruptCheckpointError(f"{where}: the tensor {pointer!r} is missing.")
            return read(entry)

        try:
            form = json.loads(tensor("").numpy().tobytes())
        except (ValueError, RecursionError, TypeError) as error:
            raise CorruptCheckpointError(f"{where}: not valid JSON: {error}.") from error
        return restore_extra(form, tensor, where)


class _StateDict(dict[str, Any]):
    """A state dict with versions of modules, as PyTorch's has."""

    _metadata: Mapping[str, Any] | None = None


def _loads_on_its_own(module: nn.Module, *, root: bool) -> bool:
    """Whether a module's code, beside `set_extra_state`, takes part in loading its state dict."""
    hooks = (
        *module._load_state_dict_pre_hooks.values(),
        *module._load_state_dict_post_hooks.values(),
    )
    if any(not getattr(hook, "__module__", "").startswith(_PLAIN_HOOKS) for hook in hooks):
        return True
    kind, own = type(module), vars(module)
    if kind._load_from_state_dict not in _PLAIN_METHODS or "_load_from_state_dict" in own:
        return True
    return root and (
        kind.load_state_dict is not nn.Module.load_state_dict or "load_state_dict" in own
    )


def _replaced(model: nn.Module, special: Iterable[_Own]) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters for which loading puts others: on meta, or beside such in one call."""
    for name, param in model.named_parameters():
        if param.is_meta:
            yield name, param
    for own in special:
        params = list(own.module.named_parameters(own.prefix.removesuffix(".")))
        if any(param.is_meta for _, param in params):
            yield from params


def _as_it_was(old: Tensor, new: Tensor) -> Tensor:
    if isinstance(old, nn.Parameter):
        return nn.Parameter(new, requires_grad=old.requires_grad)
    return new
