"""multiprocessing.Pipe through shared memory.

    from ringpipe import Pipe

in place of

    from multiprocessing import Pipe

Pipe() returns a pair of connections that behave as those of multiprocessing do: they send and receive objects and bytes, can be polled,
waited for with multiprocessing.connection.wait, inherited by fork, passed to processes that are spawned, and sent over other connections.
Messages go through rings in memory that both processes map, without a system call while data flows.
"""

from ._connection import Connection, Pipe

__all__ = ["Connection", "Pipe"]
