"""Length-prefixed frames over a socket: 8 bytes little-endian, then that many bytes of msgpack."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

_HEADER = struct.Struct("<Q")


class FrameSocket:
    """Whole frames in and out of a connected stream socket; one reader, any number of writers."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._file = sock.makefile("rb", buffering=1 << 16)
        self._write_lock = threading.Lock()

    def send(self, payload: bytes) -> None:
        """Writes one frame. Raises OSError if the other side is gone."""
        with self._write_lock:
            if len(payload) < 1 << 16:
                self._sock.sendall(_HEADER.pack(len(payload)) + payload)
            else:
                self._sock.sendall(_HEADER.pack(len(payload)))
                self._sock.sendall(payload)

    def receive(self) -> bytes | None:
        """The next frame; None once the other side is gone, also in the middle of a frame."""
        try:
            header = self._file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                return None
            (length,) = _HEADER.unpack(header)
            payload = self._file.read(length)
        except (OSError, ValueError):  # reset by peer, or closed by us from another thread
            return None
        return payload if len(payload) == length else None

    def hang_up(self) -> None:
        """Ends both directions, from any thread: a `receive` under way returns None. Idempotent."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hangs up and gives the descriptor back; for the reader's thread. Idempotent."""
        self.hang_up()
        self._file.close()
        self._sock.close()
