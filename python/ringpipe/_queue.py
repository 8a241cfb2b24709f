"""The classes of queues."""

import multiprocessing
import types
from multiprocessing import context, queues

from . import _native
from ._connection import adopt, duplicate

# Bytes of the ring, unless a queue is told otherwise.
CAPACITY = 1 << 20


class _Shared:
    """How queues get to other processes: while those are being started, and not later."""

    def __getstate__(self):
        context.assert_spawning(self)
        receiving, sending, fds = self._parts()
        return receiving, sending, duplicate(fds)

    def __setstate__(self, state):
        receiving, sending, duplicates = state
        self._attach(receiving, sending, adopt(duplicates))

    __class_getitem__ = classmethod(types.GenericAlias)


class SimpleQueue(_Shared, _native.SimpleCore, queues.SimpleQueue):
    """A queue that several processes and threads can put objects into and get objects from."""

    def __init__(self, *, ctx=None, capacity=CAPACITY):
        self._create(capacity)


class Queue(_Shared, _native.QueueCore, queues.Queue):
    """A queue that several processes and threads can put objects into and get objects from.

    If maxsize is positive, it has room for so many objects; otherwise for what the ring has room for: capacity bytes, of which
    an object takes a multiple of 64. A put waits while there is none.
    """

    def __init__(self, maxsize=0, *, ctx=None, capacity=CAPACITY):
        ctx = ctx or multiprocessing.get_context()
        self._create(capacity)
        if maxsize > 0:
            self._limit(ctx.BoundedSemaphore(maxsize))

    def __getstate__(self):
        return super().__getstate__(), self._slots

    def __setstate__(self, state):
        shared, slots = state
        super().__setstate__(shared)
        self._limit(slots)

    def join_thread(self):
        """Do nothing: there is no thread. The queue has to be closed."""
        assert self._closed, f"Queue {self!r} not closed"

    def cancel_join_thread(self):
        """Do nothing: there is no thread."""


class JoinableQueue(Queue, queues.JoinableQueue):
    """A queue that also counts the objects that were put into it and have not been said to be done."""

    def __init__(self, maxsize=0, *, ctx=None, capacity=CAPACITY):
        ctx = ctx or multiprocessing.get_context()
        super().__init__(maxsize, ctx=ctx, capacity=capacity)
        self._unfinished = ctx.Semaphore(0)
        self._all_done = ctx.Condition()

    def __getstate__(self):
        return super().__getstate__(), self._unfinished, self._all_done

    def __setstate__(self, state):
        queue, self._unfinished, self._all_done = state
        super().__setstate__(queue)

    def put(self, obj, block=True, timeout=None):
        """Put an object into the queue, as Queue.put does, to be counted until task_done() is called for it."""
        if self._closed:
            return super().put(obj, block, timeout)
        # Before it can be got, and so be done. Not under the lock, which who makes room needs for that.
        self._unfinished.release()
        try:
            super().put(obj, block, timeout)
        except BaseException:
            self.task_done()
            raise

    def put_nowait(self, obj):
        """Put an object into the queue, as Queue.put_nowait does, to be counted until task_done() is called for it."""
        self.put(obj, False)

    def task_done(self):
        """Say that an object that was got is done. Raises ValueError if that was said more often than objects were put."""
        with self._all_done:
            if not self._unfinished.acquire(False):
                raise ValueError("task_done() called too many times")
            if self._unfinished._semlock._is_zero():
                self._all_done.notify_all()

    def join(self):
        """Wait until every object that was put into the queue is done."""
        with self._all_done:
            self._all_done.wait_for(self._unfinished._semlock._is_zero)
