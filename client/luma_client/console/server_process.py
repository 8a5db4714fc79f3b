"""The server as a process of its own: started, waited for, stopped."""

from __future__ import annotations

import importlib.util
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import IO, Self

from luma_core.errors import BackendUnavailableError, ConfigurationError, ServiceError

_READY = re.compile(r"listening on (https?://\S+)")
# Python adds this to the system's own words; the address is in the message already.
_ATTEMPT = re.compile(r" \(while attempting to bind on address \(.*?\)\)")
_STOP_SECONDS = 10.0
_USAGE = 2
"""What the server ends with where its arguments cannot work."""

_NEEDED_MODULES = ("luma_server", "fastapi", "prometheus_client", "uvicorn")


class ServerProcess:
    """``python -m luma_server``, running inside a ``with`` block.

    Meanwhile SIGTERM leaves the block by ``SystemExit(0)``, so the server is stopped then, too.

    Args:
        root: folder of checkpoints.
        host: address to listen on.
        port: port to listen on; 0 picks a free one.
        log: where the server's messages go; standard error by default.
        more: more arguments of the server.

    Raises:
        BackendUnavailableError: the server is not installed.
        ConfigurationError: its arguments cannot work.
        ServiceError: it ended before it was ready.
    """

    def __init__(
        self,
        *,
        root: str,
        host: str = "127.0.0.1",
        port: int = 0,
        log: IO[bytes] | None = None,
        more: Sequence[str] = (),
    ) -> None:
        self.require()
        command = [sys.executable, "-m", "luma_server", "--root", root]
        command += ["--host", host, "--port", str(port), *more]
        # Before the start, so that no signal can leave a server behind that nobody stops.
        self._restore = _exit_on_sigterm()
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if log is None else log,
            text=True,
        )
        self._messages = _Messages(self._process.stderr)
        self._forwarder = threading.Thread(target=self._forward, args=(log,), daemon=True)
        try:
            self.url = self._wait_until_ready(log)
            self._forwarder.start()
            self._messages.show()
        except BaseException:
            self.stop()
            raise

    @staticmethod
    def require() -> None:
        """Check that the server can be started.

        Raises:
            BackendUnavailableError: a module it needs is not installed.
        """
        missing = [name for name in _NEEDED_MODULES if importlib.util.find_spec(name) is None]
        if missing:
            raise BackendUnavailableError(
                f"the server needs the module {missing[0]!r}, which is not installed.",
                hint="Install it with: pip install 'luma-state[server]'.",
            )

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    def _wait_until_ready(self, log: IO[bytes] | None) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            found = _READY.search(line)
            if found:
                return found.group(1)
        code = self._process.wait()
        told = f"the server ended with code {code} before it was ready"
        if log is not None:
            raise ServiceError(f"{told}.", hint=f"Its messages in {log.name} say why.")
        said = _ATTEMPT.sub("", self._messages.take()).strip().removeprefix("error: ")
        if code == _USAGE and said:
            raise ConfigurationError(said)
        raise ServiceError(f"{told}: {said}" if said else f"{told}.")

    def _forward(self, log: IO[bytes] | None) -> None:
        """Pass on what else the server prints, so that its pipe never fills up."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if log is None:
                sys.stderr.write(line)
            else:
                log.write(line.encode())

    def wait(self) -> int:
        """Wait until the server ends by itself or by an interruption.

        Returns:
            0 where it ended cleanly, 130 where it was interrupted.

        Raises:
            ServiceError: it ended with an error.
        """
        try:
            code = self._process.wait()
        except KeyboardInterrupt:
            self.stop()
            return 130
        if code not in (0, -signal.SIGTERM):
            raise ServiceError(f"the server ended with code {code}.", hint="Its messages say why.")
        return 0

    def stop(self) -> None:
        """End the server and wait for it."""
        self._restore()
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._forwarder.ident is not None:
            self._forwarder.join()
        self._messages.end()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()


class _Messages:
    """What the server says on standard error: kept until it is ready, then passed on at once."""

    def __init__(self, stream: IO[str] | None) -> None:
        self._stream = stream
        self._kept: list[str] = []
        self._shown = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._stream or ():
            with self._lock:
                if self._shown:
                    sys.stderr.write(line)
                else:
                    self._kept.append(line)

    def show(self) -> None:
        """Pass on what was kept, and all that follows."""
        with self._lock:
            self._shown = True
            sys.stderr.write(self._drain())

    def take(self) -> str:
        """Return what was kept, once the server has ended."""
        self._thread.join()
        return self._drain()

    def _drain(self) -> str:
        text = "".join(self._kept)
        self._kept.clear()
        return text

    def end(self) -> None:
        """Pass on the rest, once the server has ended."""
        self._thread.join()
        self.show()
        if self._stream is not None:
            self._stream.close()


def _exit_on_sigterm() -> Callable[[], object]:
    """Make SIGTERM raise ``SystemExit(0)``; return what undoes that."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(0)

    previous = signal.signal(signal.SIGTERM, leave)
    return lambda: signal.signal(signal.SIGTERM, previous)
