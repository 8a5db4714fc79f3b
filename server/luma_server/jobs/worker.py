"""``python -m luma_server.jobs.worker``: one conversion, in a process of its own.

Reads one JSON object from standard input, ``src``, ``dst`` and ``to`` of
`luma_core.convert.convert` and the fields of `luma_core.convert.ConvertOptions`, and prints
JSON lines: ``{"done": bytes, "total": bytes}`` on the way and ``{"ok": true}`` or ``{"error": ...,
"hint": ...}`` at the end. Ends itself when standard input closes, as the server is gone then.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

from luma_core.errors import LumaError

_TELL_SECONDS = 0.2


def main() -> int:
    """Convert; return the exit status."""
    from luma_core import convert

    arguments: dict[str, Any] = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    told = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told > _TELL_SECONDS:
            told = time.monotonic()
            _tell({"done": done, "total": total})

    try:
        source, destination, to = (arguments.pop(name) for name in ("src", "dst", "to"))
        options = convert.ConvertOptions(**arguments)
        convert.convert(source, destination, to=to, options=options, progress=progress)
    except LumaError as error:
        _tell({"error": error.message, "hint": error.hint})
        return 1
    _tell({"ok": True})
    return 0


def _end_with_the_server() -> None:
    sys.stdin.read()
    os._exit(3)


def _tell(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main())
