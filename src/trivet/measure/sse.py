"""Server-sent events, from bytes in any pieces to the data of whole events."""

from __future__ import annotations

MAX_EVENT_BYTES = 4 * 2**20


class EventTooLong(ValueError):
    """An event does not end within `MAX_EVENT_BYTES`."""


class EventScanner:
    """Takes the bytes of a stream as they come. Works on bytes: a piece may end inside a character or a field name."""

    def __init__(self) -> None:
        self._tail = b""  # of the line that is not whole yet
        self._data: list[bytes] = []  # `data` lines of the event that is not whole yet

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of each event that is whole now; comments and other fields are passed over."""
        lines = (self._tail + piece).split(b"\n") if self._tail else piece.split(b"\n")
        self._tail = lines.pop()
        if len(self._tail) > MAX_EVENT_BYTES:
            raise EventTooLong(f"an event is longer than {MAX_EVENT_BYTES:,} bytes")
        events = []
        for raw in lines:
            line = raw[:-1] if raw.endswith(b"\r") else raw
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif not line and self._data:
                events.append(self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
                self._data.clear()
        return events

    @property
    def is_between_events(self) -> bool:
        """Whether nothing of a further event has come."""
        return not self._tail and not self._data
