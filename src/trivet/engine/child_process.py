"""`EngineProcess`: one life of the engine's process and the socket to it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import trivet
from trivet.config import EngineConfig
from trivet.engine.frames import FrameSocket
from trivet.engine.messages import EngineEvent, ToEngine
from trivet.engine.outbox import Outbox
from trivet.engine.wire import decode_events, encode

COMMAND = (sys.executable, "-P", "-m", "trivet.engine.child_main")


class EngineProcess:
    """Started by the thread that makes it, which must outlive it: Linux kills the child when that *thread* ends."""

    def __init__(self, config: EngineConfig, command: tuple[str, ...] = COMMAND) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._process = subprocess.Popen(
                [*command, str(os.getpid()), str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=2,  # a stray print must not mix with our own output
                env=_environment(),
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._frames = FrameSocket(ours)
        self._outbox: Outbox[ToEngine] = Outbox(self._send, name="trivet-commands")
        self._send_frame(encode(config))

    @property
    def pid(self) -> int:
        return self._process.pid

    def put(self, commands: list[ToEngine]) -> None:
        """Sends, in order, without waiting."""
        self._outbox.put(commands)

    def receive(self) -> list[EngineEvent] | None:
        """The next batch of events, None once the process has hung up or died."""
        frame = self._frames.receive()
        return None if frame is None else decode_events(frame)

    def end(self, timeout_s: float) -> str:
        """Hangs up, waits for the process, kills it if need be. Returns how it ended, in words."""
        self._frames.hang_up()
        self._outbox.close()
        self._frames.close()
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return f"did not answer for {timeout_s:g} s and was killed"
        return _in_words(status)

    def hang_up(self) -> None:
        """From any thread: the process ends, and a `receive` under way returns None."""
        self._frames.hang_up()

    def _send(self, commands: list[ToEngine]) -> None:
        for command in commands:
            self._send_frame(encode(command))

    def _send_frame(self, frame: bytes) -> None:
        try:
            self._frames.send(frame)
        except OSError:
            return  # it is dead: `receive` says so to the supervisor, which fails what was open


def _environment() -> dict[str, str]:
    """Ours, and where this package lies if that is a source tree."""
    environment = dict(os.environ)
    assert trivet.__file__ is not None
    root = Path(trivet.__file__).resolve().parent.parent
    if root.name not in ("site-packages", "dist-packages"):
        known = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{known}{os.pathsep}{root}" if known else str(root)
    return environment


def _in_words(status: int) -> str:
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
