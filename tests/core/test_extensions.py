"""Codecs and formats of other packages: found by entry points, used like our own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from luma_core import catalog
from luma_core.codecs import FP32, Codec, register_codec
from luma_core.convert import Format, register_format
from luma_core.errors import ConfigurationError, NameTakenError

REPO = Path(__file__).resolve().parents[2]

TINY = """
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import torch

from luma_core.codecs import Codec, FieldSpec
from luma_core.convert import AdamWState, Format, ParameterInfo, Written


@dataclass(frozen=True, kw_only=True)
class Half(Codec):
    name: ClassVar[str] = "tiny_half"
    rounds: ClassVar[bool] = False

    def layout(self, shape):
        return {"half": FieldSpec(torch.float16, tuple(shape))}

    def fit(self, x):
        return {}

    def encode(self, x, fitted, draw):
        return {"half": x.half()}

    def decode(self, fields):
        return fields["half"].float()


class Lines:
    format = "tiny_lines"
    named = True

    def __init__(self, place, model=None):
        self._text = Path(place).read_text()
        self.stored_bytes = len(self._text)
        self._groups, *self._entries = map(json.loads, self._text.splitlines())

    def groups(self):
        return self._groups

    def parameters(self):
        return [ParameterInfo(**one["info"]) for one in self._entries]

    def read(self, name):
        one = next(one for one in self._entries if one["info"]["name"] == name)
        shape = one["info"]["shape"]
        moments = [torch.tensor(one[key]).view(shape) for key in ("exp_avg", "exp_avg_sq")]
        return AdamWState(ParameterInfo(**one["info"]), *moments)


def write(source, destination, options, progress, /):
    keys = ("lr", "betas", "eps", "weight_decay", "maximize")
    lines = [json.dumps([{key: group[key] for key in keys} for group in source.groups()])]
    for info in source.parameters():
        state = source.read(info.name)
        moments = {key: getattr(state, key).flatten().tolist() for key in ("exp_avg", "exp_avg_sq")}
        lines.append(json.dumps({"info": asdict(info), **moments}))
    Path(destination).write_text("\\n".join(lines))
    return Written(stored_bytes=Path(destination).stat().st_size)


LINES = Format(
    name="tiny_lines",
    source=Lines,
    sink=write,
    detect=lambda place: str(place).endswith(".lines"),
)
"""

USE = """
import json, sys
from pathlib import Path
import torch
from luma_core import LAMB, checkpoint, convert
from luma_core.codecs import codec_names

def optimizer():
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 8)
    codecs = {"exp_avg": {"name": "tiny_half", "block_size": 128}, "exp_avg_sq": {"name": "fp32"}}
    made = LAMB(model.named_parameters(), codec=codecs, min_compress_elements=0)
    return model, made

folder = Path(sys.argv[1])
model, first = optimizer()
for _ in range(2):
    model(torch.ones(1, 8)).sum().backward()
    first.step()
moment = first.state[model.weight]["exp_avg.half"]
checkpoint.save(folder / "saved", optimizer=first)
twin, second = optimizer()
checkpoint.load(folder / "saved", optimizer=second)
loaded = second.state[twin.weight]["exp_avg.half"]
convert.convert(folder / "saved", folder / "state.lines", to="tiny_lines")
report = convert.convert(folder / "state.lines", folder / "back", to="luma", codec="fp32")
with checkpoint.open(folder / "back") as back:
    returned = back.read("weight", "exp_avg")
print(json.dumps({
    "dtype": str(moment.dtype),
    "loaded": torch.equal(moment, loaded) and bool(moment.any()),
    "converted": torch.equal(moment.float(), returned),
    "formats": [report.source_format, report.target_format],
    "codecs": list(codec_names()),
    "targets": list(convert.target_names()),
}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to put on the path, with one package that works and one that does not."""
    site = tmp_path_factory.mktemp("installed") / "site"
    packages = {
        "tiny-luma": {"luma_core.codecs": "half = tiny_luma:Half"},
        "broken-luma": {
            "luma_core.codecs": "gone = broken_luma:Gone\nfp32 = broken_luma:Taken",
            "luma_core.formats": "exits = broken_luma.exits:FORMAT",
        },
    }
    packages["tiny-luma"]["luma_core.formats"] = "lines = tiny_luma:LINES"
    for name, groups in packages.items():
        info = site / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        text = "\n".join(f"[{group}]\n{points}" for group, points in groups.items())
        (info / "entry_points.txt").write_text(text)
    (site / "tiny_luma.py").write_text(TINY)
    (site / "broken_luma").mkdir()
    (site / "broken_luma" / "__init__.py").write_text(
        "from luma_core.codecs import FP32\nclass Taken(FP32): pass\n"
    )
    (site / "broken_luma" / "exits.py").write_text("raise SystemExit('no licence')")
    return site


def run(site: Path, *command: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, cwd=REPO, env=env
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def used(installed: Path) -> subprocess.CompletedProcess[str]:
    """What a program wrote that uses them; its files lie beside the packages."""
    return run(installed, "-c", USE, str(installed.parent))


def test_an_installed_package_brings_a_codec_and_a_format(
    used: subprocess.CompletedProcess[str],
) -> None:
    found = json.loads(used.stdout)
    assert found["dtype"] == "torch.float16"
    assert found["loaded"]
    assert found["converted"]
    assert found["formats"] == ["tiny_lines", "luma"]
    assert "tiny_half" in found["codecs"]
    assert "tiny_lines" in found["targets"]
    # What is broken is told, with its package, and nothing else failed.
    for told in (
        "'gone' in luma_core.codecs of package broken-luma 1.0 cannot be used: AttributeError",
        "'fp32' in luma_core.codecs of package broken-luma 1.0 cannot be used: NameTakenError",
        "'exits' in luma_core.formats of package broken-luma 1.0 cannot be used: SystemExit",
    ):
        assert told in used.stderr


SUITE = """
from luma_core.testing.codec import CodecConformance
from tiny_luma import Half


class TestHalf(CodecConformance):
    codecs = (Half(), Half(block_size=None))
    relative_error = 2**-10
    sizes = (1e-4, 1e-3, 1.0, 1e4)
    sample_error = (2**-10, 2**-24)
    largest = 6e4
"""


def test_its_codec_passes_the_suite_of_every_codec(installed: Path) -> None:
    suite = installed.parent / "test_half.py"
    suite.write_text(SUITE)
    done = run(installed, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", str(suite))
    assert " passed" in done.stdout


COMMANDS = """
import contextlib, io, json, sys
from luma_client.cli.app import run

def output(*arguments):
    with contextlib.redirect_stdout(io.StringIO()) as text:
        assert run([*arguments, "--json"]) in (0, 1)
    return json.loads(text.getvalue())

saved, lines = sys.argv[1:]
output("convert", saved, lines, "--to", "tiny_lines")
print(json.dumps([output("inspect", lines)["format"], output("doctor")["extensions"]]))
"""


def test_the_command_line_uses_and_lists_it(
    installed: Path, used: subprocess.CompletedProcess[str]
) -> None:
    folder = installed.parent
    lines = folder / "again.lines"
    done = run(installed, "-c", COMMANDS, str(folder / "saved"), str(lines))
    assert lines.read_text() == (folder / "state.lines").read_text()
    format, found = json.loads(done.stdout)
    assert format == "tiny_lines"
    assert {(one["group"], one["name"], one["package"]) for one in found} >= {
        ("luma_core.codecs", "half", "tiny-luma 1.0"),
        ("luma_core.formats", "lines", "tiny-luma 1.0"),
        ("luma_core.codecs", "gone", "broken-luma 1.0"),
    }
    problems = {one["name"]: one["problem"] for one in found}
    assert problems["half"] == problems["lines"] == ""
    assert problems["gone"].startswith("AttributeError")


class Nameless(FP32):
    name: ClassVar[str] = ""


class Taken(FP32):
    """Has the name of the codec that it derives from."""


def writes(*_: Any) -> Any:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("register", "error", "told"),
    [
        (lambda: register_codec(Taken), NameTakenError, "codec name 'fp32' of .*Taken is that of"),
        (lambda: register_codec(Nameless), ConfigurationError, "Nameless.name='' must be"),
        (lambda: register_codec(FP32()), ConfigurationError, "must be a class"),  # type: ignore[type-var]
        (lambda: register_format("x"), ConfigurationError, "'x' must be a luma_core.convert.Form"),  # type: ignore[arg-type]
        (
            lambda: register_format(
                Format(name="dcp", source=None, sink=writes, detect=lambda _: False)
            ),
            NameTakenError,
            "format name 'dcp' is that of another",
        ),
        (
            lambda: register_format(
                Format(name="x", source=None, sink=None, detect=lambda _: False)
            ),
            ConfigurationError,
            "source=None and sink=None",
        ),
    ],
)
def test_what_cannot_be_registered(
    register: Callable[[], object], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        register()


def test_entries_are_what_they_name() -> None:
    for codec in catalog.CODECS:
        found = catalog.import_home(codec.home)
        assert issubclass(found, Codec)
        assert found.name == codec.name
        kinds = {"signed": (True, False), "square": (False, True), "both": (True, True)}
        signed, square = kinds[codec.moments]
        assert (found.signed, found.positive) == (signed, square), codec.name
    for algorithm in catalog.ALGORITHMS:
        found = catalog.import_home(algorithm.home)
        assert issubclass(found, torch.optim.Optimizer)
        assert getattr(found, "algorithm", "adamw") == algorithm.name
    for format in catalog.FORMATS:
        for home in filter(None, (format.detect, format.source, format.sink)):
            assert callable(catalog.import_home(home))
            spelled = vars(sys.modules[home.partition(":")[0]]).values()
            assert home == "luma_core.checkpoint:exists" or format.name in spelled


def test_nothing_is_left_out_of_the_catalog() -> None:
    from luma_core import codecs, optim
    from luma_core.optim.presets import PRESETS
    from luma_core.optim.turbo_adam import TURBO_PRESETS

    classes = [getattr(codecs, name) for name in codecs.__all__]
    own = {one.name for one in classes if isinstance(one, type) and hasattr(one, "name")}
    assert own == {entry.name for entry in catalog.CODECS}
    algorithms = {getattr(getattr(optim, name), "algorithm", None) for name in optim.__all__}
    assert algorithms - {None} <= {entry.name for entry in catalog.ALGORITHMS}
    assert {entry.name for entry in catalog.PRESETS} == {*PRESETS, *TURBO_PRESETS}
    assert {entry.preset for entry in catalog.TARGETS} <= {entry.name for entry in catalog.PRESETS}
