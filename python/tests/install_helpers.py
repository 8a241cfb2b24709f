"""What children of test_install.py run: importable by those that are spawned, with names imported from multiprocessing before anything is installed."""

import multiprocessing
import os
import time
from multiprocessing import JoinableQueue, Pipe, Queue, SimpleQueue, connection


def kinds():
    """The modules of what the four make, in this process, by the names that were imported here, and by those of this process' contexts."""
    made = [*Pipe(), Queue(), JoinableQueue(), SimpleQueue(), connection.Pipe()[0]]
    for method in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        made += [context.Pipe(False)[0], context.Queue(), context.JoinableQueue(2), context.SimpleQueue()]
    return {type(thing).__module__.split(".")[0] for thing in made}


def tell(conn, method, depth):
    """Sends what kinds() are here, and in a child's child."""
    conn.send(kinds())
    if depth:
        child = multiprocessing.get_context(method).Process(target=tell, args=(conn, method, depth - 1))
        child.start()
        child.join()


def put_all(q, items):
    for item in items:
        q.put(item)


def put_and_leave(q, count, size):
    q.cancel_join_thread()
    for _ in range(count):
        q.put(bytes(size))


def count_until_none(q, back):
    got = []
    while (item := q.get()) is not None:
        got.append(item)
    back.put(got)


def finish_tasks(q):
    while True:
        q.get()
        q.task_done()


def negative(n):
    return -n


def much(n):
    return bytes(n)


def fail(n):
    raise LookupError(n)


def slow(n):
    time.sleep(0.05)
    return n


def die(n):
    os.kill(os.getpid(), n)


def pid(_n):
    return os.getpid()


_initialized = None


def initialize(value):
    global _initialized
    _initialized = value


def initialized(_n):
    return _initialized


def refuse_to_start():
    raise RuntimeError("refused")


class Unpicklable:
    def __reduce__(self):
        raise ZeroDivisionError("cannot be pickled")


class Reducing:
    """Puts something into a queue when it is pickled, and arrives as "outer"."""

    def __init__(self, q):
        self.q = q

    def __reduce__(self):
        self.q.put("inner")
        return str, ("outer",)


def return_unpicklable(_n):
    return Unpicklable()
