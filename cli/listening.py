"""Where the workers listen: at one address, each with a socket of its own.

With one socket for all, whoever is idle when clients connect takes them: of 32 connections one of
two workers had up to 27, and kept them, since they are kept alive. With a socket each the kernel
deals new connections out (SO_REUSEPORT).
"""

import socket
from typing import Any


class WorkersSocket(socket.socket):
    """Holds an address, and does not listen; in a worker it becomes a socket of its own there."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Be bound anew in the process that this is sent to."""
        return bound, (self.family, self.getsockname())


def bound(family: int, address: tuple[Any, ...]) -> WorkersSocket:
    """Return a socket at an address that others of the same user may share. Raises `OSError`."""
    made = WorkersSocket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made
