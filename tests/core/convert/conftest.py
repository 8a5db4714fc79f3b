"""Fixtures that conversion shares with the checkpoint tests: a real S3 server."""

import importlib.util
from pathlib import Path


def _checkpoint_fixtures():
    path = Path(__file__).parents[1] / "checkpoint" / "conftest.py"
    spec = importlib.util.spec_from_file_location("checkpoint_fixtures", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


seaweedfs = _checkpoint_fixtures().seaweedfs
