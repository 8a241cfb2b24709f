"""multiprocessing.Pipe, Queue and SimpleQueue through shared memory.

    from ringpipe import Pipe, Queue

in place of

    from multiprocessing import Pipe, Queue

Pipe() returns a pair of connections that behave as those of multiprocessing do: they send and receive objects and bytes, can be polled,
waited for with multiprocessing.connection.wait, inherited by fork, passed to processes that are spawned, and sent over other connections.
Queue(), JoinableQueue() and SimpleQueue() return queues for any number of processes and threads, without a lock and without a thread of their own.
Messages go through rings in memory that all processes map, without a system call while data flows.

install() does that in the place of multiprocessing's, for programs that are not to be changed.
"""

from . import _build

_build.check()

from ._connection import Connection, Pipe  # noqa: E402
from ._install import install, installed, uninstall  # noqa: E402
from ._queue import JoinableQueue, Queue, SimpleQueue  # noqa: E402

__all__ = ["Connection", "JoinableQueue", "Pipe", "Queue", "SimpleQueue", "install", "installed", "uninstall"]
