"""The demo's folder: what it writes where, and what it may remove again."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luma_core.checkpoint.storage.store import storage_errors
from luma_core.errors import CheckpointExistsError

RUN = "demo"
_FROM_ADAMW = "from-adamw"
_ROUND_TRIP = "round-trip"
_RESULTS = "demo.json"


@dataclass(frozen=True)
class DemoFolder:
    """Paths below the demo's root; checkpoints lie at ``{run}/{step}``, as the server wants them.

    Attributes:
        root: the folder.
        step: the checkpoint's step.
    """

    root: Path
    step: int

    @property
    def checkpoint(self) -> Path:
        """LUMA's run at the step."""
        return self.root / RUN / str(self.step)

    @property
    def from_adamw(self) -> Path:
        """AdamW's true state, converted to LUMA."""
        return self.root / _FROM_ADAMW / str(self.step)

    @property
    def round_trip(self) -> Path:
        """The checkpoint, converted to AdamW and back."""
        return self.root / _ROUND_TRIP / str(self.step)

    @property
    def adamw_file(self) -> Path:
        """AdamW's true state at the step."""
        return self.root / "adamw.pt"

    @property
    def converted_file(self) -> Path:
        """The checkpoint, converted to AdamW."""
        return self.root / "adamw-from-luma.pt"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.root / "report.html"

    @property
    def server_log(self) -> Path:
        """What the server printed."""
        return self.root / "server.log"

    @property
    def results(self) -> Path:
        """Everything that was measured; also the mark that the folder is the demo's own."""
        return self.root / _RESULTS

    def prepare(self) -> None:
        """Make the folder, or clear what an earlier demo left in it.

        Raises:
            CheckpointExistsError: it holds something the demo did not write.
            StorageError: it cannot be written.
        """
        with storage_errors(str(self.root)):
            self.root.mkdir(parents=True, exist_ok=True)
            if self.results.is_file():
                self._clear()
            elif any(self.root.iterdir()):
                raise CheckpointExistsError(
                    f"--out {self.root} holds files that the demo did not write.",
                    hint="Name a new or empty folder.",
                )
            self.write_results({"complete": False})

    def _clear(self) -> None:
        for name in (RUN, _FROM_ADAMW, _ROUND_TRIP):
            shutil.rmtree(self.root / name, ignore_errors=True)
        for path in (self.adamw_file, self.converted_file, self.report, self.server_log):
            path.unlink(missing_ok=True)

    def write_results(self, values: dict[str, Any]) -> None:
        """Write `results`."""
        self.results.write_text(json.dumps(values, allow_nan=False) + "\n", encoding="utf-8")
