"""What crosses between a parent and its engine process, as msgpack."""

from __future__ import annotations

import msgspec

from trivet.config import EngineConfig
from trivet.engine.messages import EngineEvent, ToEngine

encode = msgspec.msgpack.Encoder().encode
decode_config = msgspec.msgpack.Decoder(EngineConfig).decode
decode_command = msgspec.msgpack.Decoder(ToEngine).decode
decode_events = msgspec.msgpack.Decoder(list[EngineEvent]).decode
