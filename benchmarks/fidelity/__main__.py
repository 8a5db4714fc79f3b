"""The command line of the fidelity benchmark; the package says what it measures."""

from __future__ import annotations

import argparse
import platform
import sys
import time
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from benchmarks import fidelity
from benchmarks.fidelity.corpus import Corpus, python_topics, read_texts
from benchmarks.fidelity.optimizers import OPTIMIZERS, Entry, entry_of
from benchmarks.fidelity.report import plot, tables
from benchmarks.fidelity.results import Results, Run
from benchmarks.fidelity.settings import SCHEDULES, SIZES, Size
from benchmarks.fidelity.sweep import Sweep
from benchmarks.fidelity.tokens import Tokens, tokenise
from benchmarks.fidelity.training import Plan, Trainer
from luma_core.errors import ConfigurationError, LumaError


def _floats(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fidelity",
        description=fidelity.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cuda = torch.cuda.is_available()
    add = parser.add_argument
    add("--data", type=Path, action="append", default=[], help="text file or folder; repeatable")
    add("--tokens", type=Path, help="tokenised file to train on instead of --data")
    add("--prepare", type=Path, help="only tokenise --data into this file")
    add("--cache", type=Path, help="folder in which tokenised files are kept")
    add("--max-tokens", type=int, help="most training tokens to keep")
    add("--size", choices=tuple(SIZES), default="gpt2" if cuda else "tiny")
    add("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    add("--optimizers", default="adamw,luma", help=f"of {', '.join(OPTIMIZERS)}")
    add("--lrs", type=_floats, help="peak learning rates, comma-separated; default by size")
    add("--seeds", type=_integers, default=(0,), help="comma-separated")
    add("--sweep-seeds", type=int, default=1, help="number of seeds that run at every lr")
    add("--steps", type=int, help="training steps; default by size")
    add("--batch-tokens", type=int, help="tokens in a step; default by size")
    add("--schedule", choices=SCHEDULES, default="cosine")
    add("--evaluations", type=int, default=4, help="held-out losses taken during a run")
    add("--budget-seconds", type=float, help="begin no run that would end later than this")
    add("--json", type=Path, help="file to keep the results in, written after each run")
    add("--resume", action="store_true", help="keep the runs that --json already holds")
    add("--from-json", type=Path, help="only print and plot the results in this file")
    add("--plot", type=Path, help="file for the plot, .png or .svg")
    return parser.parse_args(arguments)


def read_tokens(options: argparse.Namespace, size: Size) -> Tokens:
    """Read the tokens that the options name, or make them.

    Raises:
        ConfigurationError: there is nothing to make them of.
    """
    if options.tokens:
        return Tokens.load(options.tokens)
    if not options.data and size.name != "tiny":
        raise ConfigurationError(
            f"--size {size.name} needs --data or --tokens.",
            hint="docs/fidelity.md says how to fetch a text.",
        )
    corpus = Corpus.from_texts(
        read_texts(options.data) if options.data else python_topics(),
        piece_characters=size.piece_characters,
        held_out_share=size.held_out_share,
    )
    limit: int | None = options.max_tokens
    kept = None
    if options.cache:
        name = f"{corpus.digest()}-{size.vocab_size}-{limit or 'all'}.npz"
        kept = options.cache / name
        if kept.exists():
            return Tokens.load(kept)
    tokens = tokenise(corpus, vocab_size=size.vocab_size, max_train_tokens=limit)
    if kept:
        tokens.save(kept)
    return tokens


def read_entries(names: str) -> dict[str, Entry]:
    """Return the optimizers of a comma-separated list.

    Raises:
        ConfigurationError: one of them is unknown.
    """
    entries = {}
    for name in names.split(","):
        entry = entry_of(name)
        if entry is None:
            raise ConfigurationError(
                f"--optimizers {name!r} is unknown; known are {', '.join(OPTIMIZERS)}."
            )
        entries[name] = entry
    return entries


def _setup(trainer: Trainer, tokens: Tokens) -> dict[str, Any]:
    digest = blake2b(tokens.train.tobytes() + tokens.held_out.tobytes(), digest_size=8)
    machine = trainer.machine.describe()
    return {
        "size": trainer.size.name,
        "parameters": sum(param.numel() for param in trainer.params),
        "tensors": len(trainer.params),
        "context": trainer.size.context,
        "vocab_size": tokens.vocab_size,
        **asdict(trainer.plan),
        "train_tokens": len(tokens.train),
        "held_out_tokens": trainer.held_out_tokens,
        "tokens_digest": digest.hexdigest(),
        "device": machine["device"],
        "machine": machine["name"],
    }


def measure(options: argparse.Namespace) -> Results:
    """Make all runs that the options ask for."""
    began = time.perf_counter()
    size = SIZES[options.size]
    entries = read_entries(options.optimizers)
    tokens = read_tokens(options, size)
    plan = Plan(
        steps=options.steps or size.steps,
        batch_tokens=options.batch_tokens or size.batch_tokens,
        schedule=options.schedule,
        evaluations=options.evaluations,
    )
    torch.set_float32_matmul_precision("high")
    trainer = Trainer(size, tokens, options.device, plan)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    results = Results(_setup(trainer, tokens), versions, path=options.json)
    if options.resume and options.json and options.json.exists():
        results.resume(options.json)
    sweep = Sweep(
        entries=entries,
        lrs=options.lrs or size.lrs,
        seeds=options.seeds,
        sweep_seeds=options.sweep_seeds,
        ends=began + options.budget_seconds if options.budget_seconds else None,
    )

    def train(name: str, entry: Entry, lr: float, seed: int) -> Run:
        return trainer.run(name, entry, lr=lr, seed=seed)

    trainer.warm_up()
    if not sweep.run(results, train):
        print("budget spent; continue with --resume", file=sys.stderr)
    return results


def main(arguments: list[str] | None = None) -> int:
    """Do what the arguments ask for; returns the exit status."""
    options = parse(arguments)
    try:
        if options.prepare:
            read_tokens(options, SIZES[options.size]).save(options.prepare)
            return 0
        results = Results.load(options.from_json) if options.from_json else measure(options)
        print(tables(results), end="")
        if options.plot:
            plot(results, options.plot)
    except LumaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
