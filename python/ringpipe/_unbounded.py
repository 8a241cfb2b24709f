"""Queues that a put into does not wait for room in the ring: what install() puts in the place of multiprocessing's, whose put does not wait either."""

import collections
import os
import threading
import traceback
import weakref
from multiprocessing import util
from multiprocessing.reduction import ForkingPickler
from queue import Full

from . import _native, _queue

# Seconds that a put waits for room in the ring before it leaves the object to a thread. Whoever gets all the time needs less.
PATIENCE = 0.01


class _Pickled:
    """An object that has been pickled: its own pickle gives that object."""

    def __init__(self, pickle):
        self.pickle = pickle

    def __reduce__(self):
        return ForkingPickler.loads, (self.pickle,)


class _Overflow:
    """What this process has put into a queue in whose ring there was no room, in that order, and the thread that brings it there."""

    def __init__(self, slots, joined=True):
        # Where each object that waits has a place already, if there is a limit.
        self.slots = slots
        # Signal handlers put, too. Nothing that may wait, or run code of others, is done with it.
        self.lock = threading.RLock()
        self.waiting = collections.deque()
        # The same ring, without a limit, which lives as long as there is something to bring to it.
        self.outlet = None
        self.thread = None
        self.join = None
        self.joined = joined
        self.closing = False

    def add(self, queue, obj, patience):
        """Puts an object that has its place: into the ring, if nothing waits and there is room within so many seconds."""
        if not self.waiting and patience > 0:
            try:
                return self.outlet_of(queue).put(obj, True, patience)
            except Full:
                pass
        pickled = _Pickled(bytes(ForkingPickler.dumps(obj)))
        with self.lock:
            self.outlet_of(queue)
            self.waiting.append(pickled)
            if self.thread is None:
                try:
                    self.start()
                except BaseException:
                    self.waiting.remove(pickled)
                    raise

    def outlet_of(self, queue):
        with self.lock:
            if self.outlet is None:
                self.outlet = _same_ring(queue)
            return self.outlet

    def start(self):
        # Noted before it runs, so that a signal handler that puts meanwhile starts no other.
        self.thread = threading.Thread(target=self.bring, name="QueueFeederThread", daemon=True)
        try:
            self.thread.start()
        except BaseException:
            self.thread = None
            raise
        if self.joined:
            # A process that ends waits until all is in the ring.
            self.join = util.Finalize(self.thread, _join, [weakref.ref(self.thread)], exitpriority=-5)

    def bring(self):
        while True:
            # Nobody else takes anything away.
            pickled = self.waiting[0]
            try:
                self.outlet.put(pickled)
            except Exception:
                traceback.print_exc()
                if self.slots is not None:
                    self.slots.release()
            # It stays there until it is in the ring, so that what is put meanwhile goes behind it.
            with self.lock:
                self.waiting.popleft()
                if not self.waiting:
                    self.thread = None
                    if self.closing:
                        self.outlet = None
                    return

    def close(self):
        with self.lock:
            self.closing = True
            if not self.waiting:
                self.outlet = None

    def wait(self):
        with self.lock:
            thread = self.thread
        if thread is not None:
            thread.join()

    def cancel(self):
        self.joined = False
        if self.join is not None:
            self.join.cancel()


def _join(reference):
    thread = reference()
    if thread is not None:
        thread.join()


def _same_ring(queue):
    receiving, sending, fds = queue._parts()
    copies = []
    try:
        for fd in fds:
            copies.append(os.dup(fd))
    except BaseException:
        for fd in copies:
            os.close(fd)
        raise
    outlet = _native.QueueCore()
    outlet._attach(receiving, sending, copies)
    return outlet


# All of this process.
_queues = weakref.WeakSet()


def _after_fork_in_child():
    """What was there at the fork is brought by the parent, whose thread it is."""
    for queue in list(_queues):
        queue._overflow = _Overflow(queue._overflow.slots, queue._overflow.joined)


os.register_at_fork(after_in_child=_after_fork_in_child)


class Queue(_queue.Queue):
    """A queue that several processes and threads can put objects into and get objects from.

    If maxsize is positive, it has room for so many objects, and a put waits while there is none. What the ring has no room for waits in the process that has put it.
    """

    def __init__(self, maxsize=0, *, ctx=None, capacity=_queue.CAPACITY):
        super().__init__(maxsize, ctx=ctx, capacity=capacity)
        self._start_empty()

    def __setstate__(self, state):
        super().__setstate__(state)
        self._start_empty()

    def _start_empty(self):
        self._overflow = _Overflow(self._slots)
        _queues.add(self)

    def put(self, obj, block=True, timeout=None):
        """Put an object into the queue

        Waits while the queue has as many as it is limited to: not at all unless block is true, and for timeout seconds at most if that
        is not None. Raises queue.Full after that.
        """
        overflow = self._overflow
        slots = overflow.slots
        if not overflow.waiting:
            try:
                if slots is None:
                    return _native.QueueCore.put(self, obj, block, PATIENCE if timeout is None else min(timeout, PATIENCE))
                if not slots._semlock._is_zero():
                    return _native.QueueCore.put(self, obj, False)
            except Full:
                pass
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")
        if slots is None:
            return overflow.add(self, obj, 0)
        if not slots.acquire(block, timeout):
            raise Full
        try:
            overflow.add(self, obj, PATIENCE if block else 0)
        except BaseException:
            slots.release()
            raise

    def put_nowait(self, obj):
        """Put an object into the queue, as put does, if that is possible at once. Raises queue.Full if it is not."""
        self.put(obj, False)

    def qsize(self):
        """The number of objects that wait to be got, as far as this process knows."""
        return super().qsize() + len(self._overflow.waiting)

    def empty(self):
        """Whether nothing waits to be got, as far as this process knows."""
        return super().empty() and not self._overflow.waiting

    def full(self):
        """Whether a put would have to wait; a snapshot."""
        super().full()  # OSError if it is closed
        slots = self._overflow.slots
        return slots is not None and slots._semlock._is_zero()

    def close(self):
        """Close the queue in this process. What it has put still gets into the ring."""
        self._overflow.close()
        super().close()

    def join_thread(self):
        """Wait until all that this process has put is in the ring. The queue has to be closed."""
        super().join_thread()
        self._overflow.wait()

    def cancel_join_thread(self):
        """Let this process end without waiting for what the ring has no room for, which is lost then."""
        self._overflow.cancel()


class JoinableQueue(_queue.JoinableQueue, Queue):
    """A queue that also counts the objects that were put into it and have not been said to be done."""
