"""Coverage-guided fuzzing: ``python -m tests.fuzz manifest --seconds 300``.

Needs atheris (``pip install atheris``), which is no dependency of the project. Prints what
libFuzzer prints, and stops with the input at the first defect.
"""

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

from tests.fuzz import mutations


def main() -> int:
    """Run one target and return libFuzzer's exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=["manifest", "shard"])
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--corpus", type=Path, help="folder that keeps what was found")
    given = parser.parse_args()
    try:
        import atheris
    except ImportError:
        print("atheris is not installed: pip install atheris", file=sys.stderr)
        return 2
    with atheris.instrument_imports(include=["luma_core.checkpoint", "luma_core.codecs"]):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[given.target]
    with tempfile.TemporaryDirectory(prefix="luma-fuzz-") as scratch:
        corpus = given.corpus or Path(scratch)
        corpus.mkdir(parents=True, exist_ok=True)
        for index, seed in enumerate(target.seeds()):
            (corpus / f"seed-{index}").write_bytes(seed)
        options = [
            f"-max_total_time={given.seconds}",
            "-rss_limit_mb=4096",
            "-timeout=60",
            f"-max_len={1 << 17}",
            "-print_final_stats=1",
        ]
        mutator = _changed_json if target.json else _changed
        atheris.Setup([sys.argv[0], *options, str(corpus)], target.run, custom_mutator=mutator)
        atheris.Fuzz()
    return 0


def _changed(data: bytes, max_size: int, seed: int) -> bytes:
    import atheris

    rng = random.Random(seed)
    if rng.random() < 0.5:
        return bytes(atheris.Mutate(data, max_size))
    return mutations.changed_bytes(data, rng)[:max_size]


def _changed_json(data: bytes, max_size: int, seed: int) -> bytes:
    """Change JSON as JSON mostly, for other changes seldom leave it readable."""
    rng = random.Random(seed)
    if rng.random() < 0.2:
        return _changed(data, max_size, seed)
    try:
        value = json.loads(data)
        return json.dumps(mutations.changed_json(value, rng)).encode()[:max_size]
    except (ValueError, RecursionError):
        return _changed(data, max_size, seed)


if __name__ == "__main__":
    sys.exit(main())
