"""The engine's own process: `python -m trivet.engine.child_main FD`, started by `ChildProcessClient`.

FD is one end of a socket pair. The first frame in is the `EngineConfig`; the first frame out is `EngineInfo`, or the
`Failed` (with an empty request id) that says why there is none. Then commands come in and batches of events go out
until either side closes. This thread does admission, so that a submit is answered while a step runs.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable

from trivet.config import EngineConfig
from trivet.engine.failures import to_failed
from trivet.engine.frames import FrameSocket
from trivet.engine.in_process import Assembled
from trivet.engine.loop import EngineLoop
from trivet.engine.messages import Cancel, Drain, EngineEvent
from trivet.engine.outbox import Outbox
from trivet.engine.wire import decode_command, decode_config, encode

log = logging.getLogger("trivet")

EXIT_DONE = 0
EXIT_START_FAILED = 3
EXIT_BROKEN = 4  # the engine failed again and again; a fresh process may do better


def main(argv: list[str]) -> None:
    """Never returns: the process ends without Python's shutdown, whose locks a native step could still hold."""
    parent_pid, fd = int(argv[1]), int(argv[2])
    _behave_as_child(parent_pid)
    level = (os.environ.get("TRIVET_LOG") or "warning").upper()
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s", stream=sys.stderr)
    _exit(serve(socket.socket(fileno=fd), _assemble))


def serve(sock: socket.socket, assemble: Callable[[EngineConfig], Assembled]) -> int:
    """Runs one engine until the parent is gone or has drained it. Returns the exit status."""
    frames = FrameSocket(sock)
    first = frames.receive()
    if first is None:
        return EXIT_DONE

    def send(events: list[EngineEvent]) -> None:
        try:
            frames.send(encode(events))
        except OSError:  # the parent is gone, and `_obey` sees it
            frames.hang_up()

    outbox: Outbox[EngineEvent] = Outbox(send, name="trivet-sender")
    try:
        assembled = assemble(decode_config(first))
        loop = EngineLoop(assembled.make_engine, outbox.put, is_replaced=True)
    except Exception as error:
        log.debug("the engine could not start", exc_info=True)
        send([to_failed("", error)])
        return EXIT_START_FAILED
    _calm_collector()
    outbox.put([assembled.info])
    loop.start()
    threading.Thread(target=_close_after, args=(loop, outbox, frames), name="trivet-closer", daemon=True).start()
    _obey(frames, loop)
    loop.stop()
    return EXIT_BROKEN if loop.broken else EXIT_DONE


def _obey(frames: FrameSocket, loop: EngineLoop) -> None:
    """Takes commands until the socket closes, by the parent or by us after a drain."""
    while (frame := frames.receive()) is not None:
        command = decode_command(frame)
        match command:
            case Cancel():
                loop.cancel(command.request_id, command.index)
            case Drain():
                loop.drain()
            case _:
                loop.submit(command)


def _close_after(loop: EngineLoop, outbox: Outbox[EngineEvent], frames: FrameSocket) -> None:
    """When the loop has ended, by a drain or because it is broken: sends what is left and hangs up."""
    loop.join()
    outbox.close()
    frames.hang_up()


def _calm_collector() -> None:
    """Keeps Python's garbage collector from pausing the engine between two steps.

    What lives now lives as long as the process, so it is frozen: no pass looks at it again (a full one took 11 ms,
    many times the host's part of a step). Requests and events are freed by their reference counts, so passes may be
    rare: by default there is one for every 700 new objects, which 32 streams with logprobs make in four steps.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _assemble(config: EngineConfig) -> Assembled:
    from trivet.engine.assemble import assemble

    return assemble(config)


def _behave_as_child(parent_pid: int) -> None:
    """Leaves Ctrl-C and SIGTERM to the parent, dies with it, and says where on a native crash."""
    faulthandler.enable()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it was gone before prctl
        _exit(EXIT_DONE)


def _exit(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main(sys.argv)
