"""install(): multiprocessing's own functions, made to use what is here.

What is replaced are not the functions but what they do, their code objects: so they are reached by whatever name, and from wherever, somebody had imported them
before; they keep their signatures, and uninstall() leaves nothing behind.
"""

import contextlib
import os
import threading
import types
from multiprocessing import connection, context, queues, spawn

from . import _queue, _unbounded

__all__ = ["install", "installed", "uninstall"]

# Who makes SimpleQueues to use parts of them that are not public: those stay the original's, over our Pipe.
_POOLS = ("multiprocessing.pool", "concurrent.futures.process")

# What a child runs before it imports the main module. Its path is not yet that of its parent.
_IN_CHILD = """
import sys
before, sys.path = sys.path, sys_path
try:
    import ringpipe
finally:
    sys.path = before
ringpipe.install()
"""

# What the functions do while they are replaced. They run among the names of the modules of the standard library, and so import what they need.


def _Pipe(duplex=True):
    from ringpipe import Pipe

    return Pipe(duplex)


def _Queue(self, maxsize=0):
    from ringpipe import _unbounded

    return _unbounded.Queue(maxsize, ctx=self.get_context())


def _JoinableQueue(self, maxsize=0):
    from ringpipe import _unbounded

    return _unbounded.JoinableQueue(maxsize, ctx=self.get_context())


def _SimpleQueue(self):
    import sys

    from ringpipe import _install

    return _install._simple_queue(self.get_context(), sys._getframe(1).f_globals.get("__name__"))


def _get_preparation_data(name):
    from ringpipe import _install

    return _install._preparation_data(name)


_REPLACED = [
    (connection, "Pipe", _Pipe),
    (context.BaseContext, "Queue", _Queue),
    (context.BaseContext, "JoinableQueue", _JoinableQueue),
    (context.BaseContext, "SimpleQueue", _SimpleQueue),
    (spawn, "get_preparation_data", _get_preparation_data),
]


def _simple_queue(ctx, caller):
    kind = queues.SimpleQueue if caller in _POOLS else _queue.SimpleQueue
    return kind(ctx=ctx)


class _InChild:
    """What is not unpickled without installing."""

    def __init__(self, sys_path):
        self.sys_path = sys_path

    def __reduce__(self):
        return exec, (_IN_CHILD, {"sys_path": self.sys_path})


def _preparation_data(name):
    data = _originals["get_preparation_data"](name)
    data["ringpipe"] = _InChild(data["sys_path"])
    return data


# Copies of the functions as they were, by name.
_originals = {}
# (function, code that it had), of those that are replaced.
_changed = []
# Whether install() was called, and how many `with installed()` there are.
_asked = False
_inside = 0
# No process is forked while it is half installed.
_lock = threading.RLock()
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def _check(function, name, ours):
    code = getattr(function, "__code__", None)
    if not isinstance(code, types.CodeType) or code.co_freevars or code.co_varnames[: code.co_argcount] != ours.__code__.co_varnames[: ours.__code__.co_argcount]:
        raise RuntimeError(f"{name} of multiprocessing is not what ringpipe knows how to replace: {function!r}")


def _replace():
    found = []
    for owner, name, ours in _REPLACED:
        function = getattr(owner, name)
        _check(function, name, ours)
        found.append((function, ours))
    for function, _ours in found:
        _originals[function.__name__] = types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__)
    try:
        for function, ours in found:
            _changed.append((function, function.__code__))
            function.__code__ = ours.__code__
    except BaseException:
        _restore()
        raise


def _restore():
    while _changed:
        function, code = _changed[-1]
        function.__code__ = code
        _changed.pop()


def _adjust(asked, inside):
    global _asked, _inside
    wanted = asked or inside > 0
    if wanted and not _changed:
        _replace()
    elif not wanted:
        _restore()
    _asked, _inside = asked, inside


def install():
    """Make multiprocessing, and what is built upon it, use ringpipe: in this process, and in those that it starts from now on.

    That are multiprocessing.Pipe, Queue, JoinableQueue and SimpleQueue, those of every context, and multiprocessing.connection.Pipe, which
    multiprocessing.Pool, concurrent.futures.ProcessPoolExecutor and the queues of multiprocessing.queues use below. It does not matter
    by what name they have been imported before. What exists already stays as it is. To install twice is to install once.

    Raises RuntimeError, with nothing changed, if something else has replaced one of them.
    """
    with _lock:
        _adjust(True, _inside)


def uninstall():
    """Undo install(), in this process: multiprocessing is again what it was. What has been made meanwhile goes on working."""
    with _lock:
        _adjust(False, _inside)


@contextlib.contextmanager
def installed():
    """Have installed, as by install(), what is in the with statement: in all threads of this process, and in processes that are started meanwhile."""
    with _lock:
        _adjust(_asked, _inside + 1)
    try:
        yield
    finally:
        with _lock:
            _adjust(_asked, _inside - 1)
