"""State dicts by name whose keys are joined: ``state.<name>.exp_avg``, ``param_groups.<name>.lr``.

PyTorch makes them with ``StateDictOptions(flatten_optimizer_state_dict=True)``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_STATE = "state."
_GROUPS = "param_groups."


def is_flat(content: object) -> bool:
    """Whether it is such a state dict."""
    return (
        isinstance(content, Mapping)
        and any(isinstance(key, str) and key.startswith(_STATE) for key in content)
        and any(isinstance(key, str) and key.startswith(_GROUPS) for key in content)
    )


def unflattened(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state dict with groups; parameters of equal options are one group.

    Names may hold dots; what is behind the last one is the key of the state or option.
    """
    state: dict[str, dict[str, Any]] = {}
    options: dict[str, dict[str, Any]] = {}
    for key, value in content.items():
        for prefix, found in ((_STATE, state), (_GROUPS, options)):
            if key.startswith(prefix):
                name, _, part = key.removeprefix(prefix).rpartition(".")
                found.setdefault(name, {})[part] = value
    groups: dict[str, dict[str, Any]] = {}
    for name, group in options.items():
        same = json.dumps(group, sort_keys=True, default=repr)
        groups.setdefault(same, {**group, "params": []})["params"].append(name)
    return {"state": state, "param_groups": list(groups.values())}
