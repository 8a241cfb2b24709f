"""What the tests share."""

import os
import signal
import sys
import threading
import time

import pytest

HERE = os.path.dirname(__file__)


@pytest.fixture(autouse=True)
def watchdog():
    """No test hangs: the whole run is ended, with the stacks of all threads."""
    import faulthandler

    faulthandler.dump_traceback_later(120, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def fork():
    """fork(body) runs body in a child of this process; returns its number. Children are expected to succeed."""
    children = []

    def start(body):
        pid = os.fork()
        if pid == 0:
            status = 1
            signal.alarm(60)  # the watchdog is the parent's
            try:
                body()
                status = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(pid)
        return pid

    yield start
    for pid in children:
        try:
            _, status = os.waitpid(pid, 0)
        except ChildProcessError:
            continue  # the test has waited for it
        assert status == 0


@pytest.fixture
def thread():
    """thread(body) runs body in a thread, which has to end by itself, without an exception."""
    threads, raised = [], []

    def start(body, *args):
        def run():
            try:
                body(*args)
            except BaseException as e:
                raised.append(e)

        started = threading.Thread(target=run, daemon=True)
        started.start()
        threads.append(started)
        return started

    yield start
    for started in threads:
        started.join(30)
        assert not started.is_alive()
    assert not raised, raised


@pytest.fixture
def handler():
    """handler(f) makes f the handler of SIGUSR1, and returns a function that sends it after some seconds, from another process's view of this one."""
    before = signal.getsignal(signal.SIGUSR1)
    timers = []

    def install(f):
        signal.signal(signal.SIGUSR1, lambda number, frame: f())

        def later(seconds):
            timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGUSR1))
            timer.start()
            timers.append(timer)

        return later

    yield install
    for timer in timers:
        timer.cancel()
        timer.join()
    signal.signal(signal.SIGUSR1, before)


def until(condition, seconds=10.0):
    """Waits for a condition that no descriptor tells of."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not come about in time"
        time.sleep(0.005)
