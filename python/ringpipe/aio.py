"""Connections and queues for asyncio.

    from ringpipe import Pipe, aio

    async def serve(connection):
        async with aio.Connection(connection) as connection:
            async for request in connection:
                await connection.send(answer(request))

What is on the other side makes no difference: another of these, or a plain connection in another process or thread.
"""

import asyncio
import collections
import queue as _queue
import time

from . import _connection

__all__ = ["Connection", "get", "put"]

# So many calls in a row find what they need before other tasks have their turn.
_TURN = 64
# How long a call that no descriptor wakes looks again as soon as other tasks have had their turn, and then, in seconds,
# how long it sleeps at first and at most.
_BRISK = 0.001
_FIRST = 0.001
_LAST = 0.016


class _Patience:
    """Waits a little longer each time."""

    def __init__(self):
        self.brisk = time.monotonic() + _BRISK
        self.pause = _FIRST

    async def wait(self):
        if time.monotonic() < self.brisk:
            await asyncio.sleep(0)
        else:
            await asyncio.sleep(self.pause)
            self.pause = min(2 * self.pause, _LAST)


class Connection:
    """One end of a pipe, whose calls wait without holding up the event loop.

    Made of a connection of ringpipe.Pipe(), for the running loop. All calls can be cancelled: a receive that is has taken
    nothing, and of a send that is nothing arrives. Several tasks may receive, each message going to one of them, first
    come, first served, and several may send, one message after the other. There should be one of these objects to a
    connection, and it is this one that is to be closed.
    """

    def __init__(self, connection):
        if not isinstance(connection, _connection.Connection):
            raise TypeError("a connection of ringpipe.Pipe() is needed")
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._waiters = collections.deque()
        self._fd = None
        self._sends = asyncio.Lock()
        self._calls = 0

    @property
    def connection(self):
        """The connection that this was made of."""
        return self._connection

    @property
    def closed(self):
        """True if the connection is closed"""
        return self._connection.closed

    @property
    def readable(self):
        """True if the connection is readable"""
        return self._connection.readable

    @property
    def writable(self):
        """True if the connection is writable"""
        return self._connection.writable

    def fileno(self):
        """File descriptor of the connection, only to be watched"""
        return self._connection.fileno()

    def close(self):
        """Close the connection. Calls that wait raise OSError."""
        self._unwatch()
        self._connection.close()
        self._wake_all()

    async def recv(self):
        """Receive a (picklable) object"""
        return self._connection._loads(await self.recv_bytes())

    async def recv_bytes(self, maxlength=None):
        """Receive bytes data as a bytes object.

        A message of more than maxlength bytes is an OSError, after which this end no longer receives.
        """
        await self._turn()
        first = True
        while True:
            # Who was there before goes before.
            if not (first and self._waiters):
                try:
                    message = self._connection._recv_now(maxlength)
                except OSError:
                    # Nothing is received any more, of which no descriptor tells the others.
                    self._wake_all()
                    raise
                if message is not None:
                    return message
            await self._wait_to_read(first)
            first = False

    async def send(self, obj):
        """Send a (picklable) object"""
        await self._send(self._connection._sending(obj))

    async def send_bytes(self, buf, offset=0, size=None):
        """Send the bytes data from a bytes-like object, which must not change meanwhile"""
        await self._send(self._connection._sending_bytes(buf, offset, size))

    async def _send(self, attempt):
        try:
            await self._turn()
            async with self._sends:
                patience = _Patience()
                while True:
                    if self._connection.closed:
                        raise OSError("handle is closed")
                    if attempt():
                        return
                    await patience.wait()
        except BaseException:
            attempt.give_up()
            raise
        finally:
            # It keeps the end open, and who keeps the exception keeps this frame.
            del attempt

    async def _turn(self):
        self._calls += 1
        if self._calls % _TURN == 0:
            await asyncio.sleep(0)

    async def _wait_to_read(self, last):
        """Waits until the descriptor is readable, behind others or in front of them."""
        waiter = self._loop.create_future()
        (self._waiters.append if last else self._waiters.appendleft)(waiter)
        try:
            self._watch()
            await waiter
        except BaseException:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            elif self._waiters:
                # It was woken, and does not look.
                self._wake()
            raise
        finally:
            if not self._waiters:
                self._unwatch()

    def _watch(self):
        if self._fd is None:
            self._fd = self._connection.fileno()
            self._loop.add_reader(self._fd, self._wake)

    def _unwatch(self):
        if self._fd is not None:
            self._loop.remove_reader(self._fd)
            self._fd = None

    def _wake(self):
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._unwatch()

    def _wake_all(self):
        while self._waiters:
            self._wake()

    def __aiter__(self):
        return self

    async def __anext__(self):
        try:
            message = await self.recv_bytes()
        except EOFError:
            raise StopAsyncIteration from None
        return self._connection._loads(message)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exception):
        self.close()


async def get(queue):
    """Remove an object from a Queue or JoinableQueue, and return it. A get that is cancelled has taken nothing.

    The consumers of a queue have no descriptor: it looks again each time that other tasks have had their turn, for a
    millisecond, and then after sleeping for longer and longer, up to 16 ms.
    """
    patience = _Patience()
    while True:
        try:
            return queue.get_nowait()
        except _queue.Empty:
            await patience.wait()


async def put(queue, obj):
    """Put an object into a Queue or JoinableQueue. A put that is cancelled has put nothing.

    It looks for room as get() looks for objects, and pickles the object each time.
    """
    patience = _Patience()
    while True:
        try:
            return queue.put_nowait(obj)
        except _queue.Full:
            await patience.wait()
