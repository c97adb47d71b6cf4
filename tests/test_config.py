"""Settings refuse what they cannot be, by name, with the value and what was expected."""

from __future__ import annotations

from typing import Any

import pytest

from trivet.config import CacheConfig, SchedulerConfig, ServerConfig
from trivet.errors import ConfigError

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("kind", "name", "value", "said"),
    [
        (ServerConfig, "drain_s", NAN, "`server.drain_s` is nan, but it must be 0 or more seconds"),
        (ServerConfig, "drain_s", -1.0, "`server.drain_s` is -1, but it must be 0 or more seconds"),
        (ServerConfig, "drain_s", INF, "`server.drain_s` is inf, but"),
        (ServerConfig, "stall_s", 0.0, "`server.stall_s` is 0, but it must be above 0 seconds"),
        (ServerConfig, "max_body_bytes", 0, "`server.max_body_bytes` is 0, but it must be 1 or more"),
        (ServerConfig, "max_bodies_bytes", 100, "`server.max_bodies_bytes` is 100, but it must be 16777216 or more"),
        (ServerConfig, "max_connections", 0, "`server.max_connections` is 0, but it must be 1 or more"),
        (CacheConfig, "memory_bytes", "2GiB", "`cache.memory_bytes` is '2GiB', but it must be a whole number"),
        (SchedulerConfig, "max_num_seqs", 1.5, "`scheduler.max_num_seqs` is 1.5, but it must be a whole number"),
        (ServerConfig, "api_keys", ("a", ""), "`server.api_keys` has a key that is empty, or begins or ends"),
        (ServerConfig, "api_keys", (" a",), "`server.api_keys` has a key that is empty, or begins or ends"),
        (SchedulerConfig, "max_wait_s", NAN, "`scheduler.max_wait_s` is nan, but it must be above 0 seconds"),
        (SchedulerConfig, "max_wait_s", 0.0, "`scheduler.max_wait_s` is 0, but it must be above 0 seconds"),
        (SchedulerConfig, "itl_target_s", -0.1, "`scheduler.itl_target_s` is -0.1, but it must be 0 or more seconds"),
        (SchedulerConfig, "itl_target_s", INF, "`scheduler.itl_target_s` is inf, but it must be 0 or more seconds"),
        (SchedulerConfig, "itl_target_s", None, "`scheduler.itl_target_s` is None, but it must be 0 or more seconds"),
        (SchedulerConfig, "max_pause_s", -1.0, "`scheduler.max_pause_s` is -1, but it must be 0 or more seconds"),
    ],
)
def test_a_value_that_cannot_be(kind: type[Any], name: str, value: object, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(**{name: value})
    assert caught.value.message.startswith(said)


def test_the_edges_are_allowed() -> None:
    ServerConfig(drain_s=0.0, stall_s=0.001, max_body_bytes=1, max_bodies_bytes=1, max_connections=1, api_keys=("a b",))
    SchedulerConfig(max_wait_s=INF, itl_target_s=0.0, max_pause_s=0.0, max_waiting=0)
    SchedulerConfig(max_pause_s=None)
