"""The servers that are measured: processes of their own on free loopback ports."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

START_SECONDS = 60.0
SAMPLE_SECONDS = 0.02
GRPC_OFFSET = 10_000
"""SeaweedFS listens for gRPC that far above each of its ports."""

KEY, SECRET, BUCKET = "benchmark", "benchmark-secret", "checkpoints"

_NGINX = """daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  client_body_temp_path {folder}/t1;
  proxy_temp_path {folder}/t2;
  fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4;
  scgi_temp_path {folder}/t5;
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


def binary(name: str) -> str | None:
    """Return a program beside this Python or on the path; ``None`` where there is none."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


def free_ports(count: int) -> list[int]:
    """Return ports that are free, and those for gRPC with them."""
    found = (port for port in range(21_000, 30_000, 7) if _free(port) and _free(port + GRPC_OFFSET))
    return [next(found) for _ in range(count)]


def _free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def _ended(process: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _wait_for(process: subprocess.Popen[str], url: str) -> None:
    end = time.monotonic() + START_SECONDS
    while not _answers(url):
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{process.args!r} does not answer at {url}")
        time.sleep(0.1)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return b'"error"' not in answer.read()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


class Server:
    """A LUMA server that runs.

    Attributes:
        url: its address.
    """

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.url = url
        self._status = Path(f"/proc/{process.pid}/status")

    def anonymous_bytes(self) -> int:
        """Return the memory of the process that no file backs."""
        lines = self._status.read_text().splitlines()
        return 1024 * next(int(one.split()[1]) for one in lines if one.startswith("RssAnon:"))

    @contextlib.contextmanager
    def peak(self) -> Iterator[list[int]]:
        """Yield a list that holds the largest `anonymous_bytes` once the block has ended."""
        stop = threading.Event()
        found: list[int] = [self.anonymous_bytes()]

        def watch() -> None:
            while not stop.wait(SAMPLE_SECONDS):
                found[0] = max(found[0], self.anonymous_bytes())

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield found
        finally:
            stop.set()
            thread.join()


@contextlib.contextmanager
def luma_server(root: str | Path) -> Iterator[Server]:
    """Run the server over a root, open to everybody on this machine."""
    process = subprocess.Popen(
        [sys.executable, "-m", "luma_server", "--root", str(root), "--no-auth"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with _ended(process):
        assert process.stdout is not None
        told = process.stdout.readline()
        if not told:
            raise RuntimeError("the server did not start")
        url = told.split()[-1]
        _wait_for(process, f"{url}/readyz")
        yield Server(process, url)


@contextlib.contextmanager
def nginx_server(program: str, root: Path, folder: Path) -> Iterator[str]:
    """Run nginx with one worker over a folder; give its address."""
    folder.mkdir()
    port = free_ports(1)[0]
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, port=port, root=root))
    command = [program, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(config)]
    if os.geteuid() == 0:
        # Its worker would give up root, and with it the right to read the folder.
        command += ["-g", "user root;"]
    process = subprocess.Popen(command, text=True)
    url = f"http://127.0.0.1:{port}"
    with _ended(process):
        _wait_for(process, url)
        yield url


@contextlib.contextmanager
def seaweedfs(program: str, folder: Path) -> Iterator[dict[str, str]]:
    """Run an S3 server with an empty bucket; give the environment of those who use it."""
    folder.mkdir()
    (data := folder / "data").mkdir()
    config = folder / "s3.json"
    identity = {
        "name": "benchmark",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config.write_text(json.dumps({"identities": [identity]}))
    s3, master, volume, filer = free_ports(4)
    command = [program, "-logdir", str(folder), "server", f"-dir={data}", "-ip=127.0.0.1"]
    command += ["-ip.bind=127.0.0.1", "-filer", "-s3", f"-s3.config={config}"]
    command += [f"-s3.port={s3}", f"-master.port={master}", f"-volume.port={volume}"]
    command += [f"-filer.port={filer}", "-volume.max=20", "-master.volumeSizeLimitMB=128"]
    command += ["-master.telemetry=false", "-s3.iam=false"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True, cwd=folder
    )
    environment = {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3}",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with _ended(process):
        _wait_for(process, f"http://127.0.0.1:{s3}/healthz")
        _wait_for(process, f"http://127.0.0.1:{master}/dir/assign")
        yield environment
