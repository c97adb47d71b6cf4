"""The listening socket, opened before the model loads so that a busy port is named at once."""

from __future__ import annotations

import errno
import socket

from trivet.config import ServerConfig
from trivet.errors import ConfigError

BACKLOG = 1024


def bind(config: ServerConfig) -> socket.socket:
    """A listening TCP socket on `config.host` and `config.port`. Raises ConfigError saying why it cannot be."""
    try:
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:  # a name such as `a..b` cannot even be encoded
        why = error.strerror if isinstance(error, socket.gaierror) else error
        raise ConfigError(
            f"`server.host` is {config.host!r}, which is not an address: {why}",
            hint="use 127.0.0.1 for this machine only, 0.0.0.0 for all its addresses",
        ) from None
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _why(error, config) from None
    sock.setblocking(False)
    return sock


def _why(error: OSError, config: ServerConfig) -> ConfigError:
    match error.errno:
        case errno.EADDRINUSE:
            other = config.port + 1 if config.port < 65535 else config.port - 1
            return ConfigError(
                f"port {config.port} on {config.host} is already in use{_user_of(config.port)}",
                hint=f"stop that, or choose another port: `--port {other}`, or 0 for any free one",
            )
        case errno.EACCES:
            return ConfigError(
                f"port {config.port} may not be opened by this user",
                hint="ports below 1024 belong to root; choose a higher one with `--port`",
            )
        case errno.EADDRNOTAVAIL:
            return ConfigError(
                f"`server.host` is {config.host!r}, which is not an address of this machine",
                hint="use 127.0.0.1 for this machine only, 0.0.0.0 for all its addresses",
            )
    return ConfigError(f"{config.host}:{config.port} cannot be bound: {error.strerror}")


def _user_of(port: int) -> str:
    """The words "by NAME (process PID)", after a space, where the process can be seen; else nothing."""
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (process {connection.pid})"
    except (psutil.Error, OSError):
        return ""
    return ""
