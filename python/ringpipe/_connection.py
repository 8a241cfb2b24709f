"""The class of connections, and Pipe()."""

import multiprocessing.connection
import os
from multiprocessing import reduction

from . import _native

# How a handle gets over a connection: as part of a message. The standard library writes it to the descriptor, which is not how messages travel here.
_send_handle, _recv_handle = reduction.send_handle, reduction.recv_handle


def send_handle(conn, handle, destination_pid):
    """Send a handle over a local connection."""
    if isinstance(conn, Connection):
        conn.send(reduction.DupFd(handle))
    else:
        _send_handle(conn, handle, destination_pid)


def recv_handle(conn):
    """Receive a handle over a local connection."""
    return conn.recv().detach() if isinstance(conn, Connection) else _recv_handle(conn)


reduction.send_handle, reduction.recv_handle = send_handle, recv_handle
os.register_at_fork(
    before=_native.before_fork,
    after_in_parent=_native.after_fork_in_parent,
    after_in_child=_native.after_fork_in_child,
)


class Connection(_native.Connection, multiprocessing.connection.Connection):
    """One end of a pipe, made by Pipe().

    An instance of multiprocessing.connection.Connection that has all its methods.
    """

    # What the standard library's finalizer looks at. The native part closes by itself.
    _handle = None

    def __init__(self, *args, **kwargs):
        raise TypeError("connections are made by Pipe()")

    def __reduce__(self):
        frame, fds = self._parts()
        return _rebuild, (frame, duplicate(fds), self.readable, self.writable)

    # Otherwise pickle protocols 2 and up would go past __reduce__ to the standard library's reducer of its own class.
    def __reduce_ex__(self, protocol):
        return self.__reduce__()


def duplicate(fds):
    """DupFd objects of descriptors, for another process to adopt."""
    # They are kept until they are fetched, even if a later one cannot be made: so see first that there are as many to be had.
    spare = []
    try:
        for _ in fds:
            spare.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    finally:
        for fd in spare:
            os.close(fd)
    return [reduction.DupFd(fd) for fd in fds]


def adopt(duplicates):
    """The descriptors that were made DupFd objects of in another process."""
    fds = []
    try:
        for duplicate in duplicates:
            fds.append(duplicate.detach())
        for fd in fds:
            os.set_inheritable(fd, False)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return fds


def _rebuild(frame, duplicates, readable, writable):
    fds = adopt(duplicates)
    connection = Connection.__new__(Connection)
    connection._attach(frame, fds, readable, writable)
    return connection


def Pipe(duplex=True):
    """Return a pair of connections, (first, second), at the ends of a new pipe.

    If duplex is true, both send and receive. Otherwise the first can only receive, and the second only send.
    """
    first, second = Connection.__new__(Connection), Connection.__new__(Connection)
    _native.connect(first, second, bool(duplex))
    return first, second
