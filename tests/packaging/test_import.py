"""What importing the packages costs, and what it offers."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from luma_core import TurboAdam, checkpoint

REPO = Path(__file__).resolve().parents[2]
PACKAGES = {
    "luma_core": REPO,
    "luma_kernels": REPO / "kernels",
    "luma_server": REPO / "server",
    "luma_client": REPO / "client",
}
OPTIONAL = {"triton"}
HEAVY = ["fastapi", "httpx", "luma_kernels", "pydantic", "rich", "triton", "typer", "uvicorn"]

# What torch loads by itself is not luma_core's doing.
LIGHT_IMPORT = """
import json, sys
import torch
before = set(sys.modules)
import luma_core
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps({"loaded": sorted(loaded), "cuda": torch.cuda.is_initialized()}))
"""


def test_import_of_core_is_light() -> None:
    command = [sys.executable, "-W", "error", "-c", LIGHT_IMPORT]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO)
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert [name for name in HEAVY if name in report["loaded"]] == []
    assert report["cuda"] is False


def package_names() -> Iterator[str]:
    for name, root in PACKAGES.items():
        for init in sorted((root / name).rglob("__init__.py")):
            yield ".".join(init.parent.relative_to(root).parts)


def import_or_skip(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name in OPTIONAL:
            pytest.skip(f"{name} needs {error.name}, which is not installed")
        raise


def public_names(module: ModuleType) -> set[str]:
    """What a reader of `dir(module)` would take for its interface."""
    incidental = {"annotations", "TYPE_CHECKING", "export_lazily", "give_moved_names"}
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, ModuleType) and name not in incidental
    }


@pytest.mark.parametrize("name", list(package_names()))
def test_all_is_the_public_interface(name: str) -> None:
    module = import_or_skip(name)
    exported = getattr(module, "__all__", [])
    assert [item for item in exported if not hasattr(module, item)] == [], "names nothing"
    assert len(exported) == len(set(exported)), "names something twice"
    assert public_names(module) - set(exported) == set(), "leaves something out"


def test_core_states_its_interface() -> None:
    assert "__version__" in importlib.import_module("luma_core").__all__


def test_command_entry_point_exists() -> None:
    assert callable(importlib.import_module("luma_client.cli").main)


DOORS = {
    "package": "import luma_core",
    "errors": "import luma_core.errors",
    "checkpoint": "import luma_core.checkpoint",
    "stores": "from luma_core.checkpoint.storage import commit, local, remote, s3, store",
    "manifest": (
        "from luma_core import checkpoint; from pathlib import Path\n"
        "checkpoint.format.parse_manifest(Path(folder, 'luma.json').read_bytes())"
    ),
    "open": (
        "from luma_core import checkpoint\n"
        "assert checkpoint.exists(folder)\n"
        "assert checkpoint.open(folder).manifest.summary.parameters == 2"
    ),
    "verify": "from luma_core import checkpoint; assert checkpoint.verify(folder).ok",
}


COMMAND = "from luma_client.cli.app import run; assert run({arguments}) == {code}"
SERVER = """
import asyncio, httpx
from pathlib import Path
from luma_server import Settings, create_app
app = create_app(Settings(root=str(Path(folder).parent), allow_anonymous=True))

async def ask():
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            for path in ("/healthz", "/", "/v1/checkpoints"):
                answer = await client.get(path)
                assert answer.status_code < 400, (path, answer.text)

asyncio.run(ask())
"""


def command(*arguments: str, code: int = 0) -> str:
    listed = ", ".join("folder" if one == "FOLDER" else repr(one) for one in arguments)
    return COMMAND.format(arguments=f"[{listed}]", code=code)


DOORS |= {
    "luma inspect": command("inspect", "FOLDER", "--params"),
    "luma verify": command("verify", "FOLDER"),
    "luma ls": command("ls", "luma://127.0.0.1:9/run", code=8),
    "luma rm": command("rm", "luma://127.0.0.1:9/run/1", "--yes", code=8),
    "luma pin": command("pin", "luma://127.0.0.1:9/run/1", code=8),
    "luma push": command("push", "FOLDER", "luma://127.0.0.1:9/run/1", code=8),
    "luma pull": command("pull", "luma://127.0.0.1:9/run/1", "elsewhere", code=8),
    "luma --help": command("--help"),
    "server": SERVER,
}


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small checkpoint with two codecs."""
    folder = tmp_path_factory.mktemp("doors") / "saved"
    model = torch.nn.Linear(64, 64)
    optimizer = TurboAdam(model.named_parameters())
    model(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    checkpoint.save(folder, optimizer=optimizer, model=model, extra={"epoch": 1})
    return folder


def loaded_after(code: str, folder: Path) -> set[str]:
    """Return the packages that a new interpreter has loaded after ``code``."""
    whole = f"folder = {str(folder)!r}\n{code}\nimport sys\nprint('', *sys.modules, sep='\\n')"
    command = [sys.executable, "-W", "error", "-c", whole]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO)
    assert run.returncode == 0, run.stderr
    return {name.partition(".")[0] for name in run.stdout.splitlines()}


@pytest.mark.parametrize("door", list(DOORS))
def test_metadata_loads_no_tensors(door: str, saved: Path) -> None:
    loaded = loaded_after(DOORS[door], saved)
    assert "luma_core" in loaded
    # A store reads files' content into memory that is NumPy's.
    reads_content = door in ("verify", "luma verify")
    assert loaded & {"torch", *([] if reads_content else ["numpy"])} == set()


LAZY = [
    name
    for name in package_names()
    if "export_lazily" in Path(import_or_skip(name).__file__ or "").read_text()
]


@pytest.mark.parametrize("name", LAZY)
def test_names_of_lazy_packages_agree(name: str) -> None:
    """What type checkers read, what is imported on demand and `__all__` are the same names."""
    module = importlib.import_module(name)
    tree = ast.parse(Path(module.__file__ or "").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    read = {
        (node.module, alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    call = next(node for node in ast.walk(block) if isinstance(node, ast.Call))
    exported = ast.literal_eval(call.args[1])
    assert {(source, one) for source, names in exported.items() for one in names} == read
    assert {one for _, one in read} | {"__version__"} >= set(module.__all__)
    assert set(module.__all__) <= set(dir(module))


def test_star_import_gives_what_is_exported() -> None:
    namespace: dict[str, object] = {}
    exec("from luma_core import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(importlib.import_module("luma_core").__all__)


def test_what_is_not_there_is_an_attribute_error() -> None:
    module = importlib.import_module("luma_core")
    with pytest.raises(AttributeError, match="module 'luma_core' has no attribute 'LUMMA'"):
        _ = module.LUMMA
    assert module.codecs is importlib.import_module("luma_core.codecs")
