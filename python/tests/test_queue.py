"""Queues: case by case beside multiprocessing's, across processes started in each way, and when some of those are killed."""

import collections
import gc
import multiprocessing
import os
import pickle
import queue
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from fractions import Fraction
from multiprocessing.reduction import ForkingPickler

import pytest
import queue_helpers
from conftest import until

import ringpipe

METHODS = ["fork", "spawn", "forkserver"]
KINDS = ["Queue", "JoinableQueue", "SimpleQueue"]


@pytest.fixture(params=METHODS)
def context(request):
    return multiprocessing.get_context(request.param)


@pytest.fixture(params=["multiprocessing", "ringpipe"])
def make(request):
    """make(kind, *args) makes a queue of either's."""
    module = {"multiprocessing": multiprocessing, "ringpipe": ringpipe}[request.param]
    made = []

    def make(kind, *args):
        made.append(getattr(module, kind)(*args))
        return made[-1]

    yield make
    for q in made:
        q.close()
        if hasattr(q, "join_thread"):
            q.join_thread()


def is_soon(q, size):
    """The original's feeder thread takes a moment."""
    until(lambda: q.qsize() == size and q.empty() == (size == 0))


def raised(call):
    with pytest.raises(Exception) as caught:
        call()
    return type(caught.value), str(caught.value)


# --- beside the original ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_objects_come_out_as_they_went_in_and_in_that_order(make, kind):
    q = make(kind)
    objects = [0, -1, 2**31, -(2**63), 2**64, 1.5, float("inf"), True, False, None, "", "é\ud800", "x" * 300, b"", b"a" * 55, b"b" * 256, b"c" * 50_000]
    objects += [(), [1, [2]], {"a": (1, None)}, {1, 2}, bytearray(b"d"), os.path.join, ValueError, "y" * 50_000]
    for obj in objects:
        q.put(obj)
        got = q.get()
        assert got == obj and type(got) is type(obj)
    for n in range(1000):
        q.put(n)
    assert [q.get() for _ in range(1000)] == list(range(1000))


@pytest.mark.parametrize("kind", KINDS[:2])
def test_an_empty_queue(make, kind):
    q = make(kind)
    assert q.empty() and not q.full() and q.qsize() == 0
    for call in (q.get_nowait, lambda: q.get(False), lambda: q.get(0), lambda: q.get(block=False, timeout=5)):
        start = time.monotonic()
        assert raised(call) == (queue.Empty, "")
        assert time.monotonic() - start < 1
    for timeout in (0, -1, 0.05, True):
        start = time.monotonic()
        assert raised(lambda: q.get(timeout=timeout)) == (queue.Empty, "")
        assert max(timeout, 0) <= time.monotonic() - start < 5


@pytest.mark.parametrize("kind", KINDS[:2])
def test_a_full_queue(make, kind):
    q = make(kind, 2)
    q.put("a")
    assert not q.full()
    q.put("b", timeout=1)
    assert q.full()
    is_soon(q, 2)
    for call in (lambda: q.put_nowait(1), lambda: q.put(1, False), lambda: q.put(1, 0), lambda: q.put(1, block=False, timeout=5)):
        start = time.monotonic()
        assert raised(call) == (queue.Full, "")
        assert time.monotonic() - start < 1
    for timeout in (0, -1, 0.05):
        start = time.monotonic()
        assert raised(lambda: q.put(1, timeout=timeout)) == (queue.Full, "")
        assert max(timeout, 0) <= time.monotonic() - start < 5
    assert [q.get(), q.get(True, 5)] == ["a", "b"]
    assert q.empty() and not q.full()
    q.put_nowait("c")
    assert q.get(timeout=5) == "c"


def test_a_timeout_has_to_be_a_number(make):
    q = make("Queue", 1)
    assert raised(lambda: q.get(timeout="x"))[0] is TypeError
    assert raised(lambda: q.put(1, timeout="x"))[0] is TypeError
    assert raised(lambda: q.put(1, False, "x"))[0] is TypeError
    assert raised(lambda: q.get(False, "x"))[0] is TypeError
    q.put(1, timeout=Fraction(1, 2))
    assert q.get(timeout=Fraction(5)) == 1
    assert raised(lambda: make("Queue", "x"))[0] is TypeError


def test_a_closed_queue(make):
    q = make("Queue")
    assert raised(q.join_thread)[0] is AssertionError
    q.put(1)
    is_soon(q, 1)
    q.close()
    q.close()
    for call in (q.get, q.get_nowait, lambda: q.get(timeout=1), lambda: q.put(1), lambda: q.put_nowait(1)):
        kind, message = raised(call)
        assert kind is ValueError and message == f"Queue {q!r} is closed"
    q.join_thread()
    q.cancel_join_thread()
    assert raised(q.empty) == (OSError, "handle is closed")


def test_a_closed_simple_queue(make):
    q = make("SimpleQueue")
    q.close()
    q.close()
    for call in (q.get, q.empty, lambda: q.put(1)):
        assert raised(call) == (OSError, "handle is closed")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dumps", [pickle.dumps, ForkingPickler.dumps])
def test_a_queue_is_pickled_only_for_a_process_that_is_being_started(make, kind, dumps):
    q = make(kind)
    kind, message = raised(lambda: dumps(q))
    assert kind is RuntimeError and message.endswith("objects should only be shared between processes through inheritance")


def test_tasks_are_counted_until_they_are_done(make):
    q = make("JoinableQueue", 5)
    q.join()
    assert raised(q.task_done) == (ValueError, "task_done() called too many times")
    q.put(1)
    q.put_nowait(2)
    joined = threading.Thread(target=q.join)
    joined.start()
    assert [q.get(), q.get()] == [1, 2]
    q.task_done()
    joined.join(0.05)
    assert joined.is_alive()
    q.task_done()
    joined.join(10)
    assert not joined.is_alive()
    assert raised(q.task_done)[0] is ValueError
    assert raised(lambda: [q.put(n, False) for n in range(6)])[0] is queue.Full
    for _ in range(5):
        q.get()
        q.task_done()
    q.join()
    assert raised(q.task_done)[0] is ValueError


@pytest.mark.parametrize("kind", KINDS)
def test_queues_are_objects_like_others(make, kind):
    q = make(kind)
    assert q and {q: 1}[q] == 1 and weakref.ref(q)() is q
    q.note = 1
    if kind == "SimpleQueue":
        assert type(q)[int]


def test_a_connection_through_a_queue(make):
    q = make("Queue")
    a, b = ringpipe.Pipe()
    q.put(b)
    other = q.get()
    other.send("through the queue")
    assert a.recv() == "through the queue"


# --- what is ringpipe's own --------------------------------------------------------------------------


def test_what_cannot_be_pickled_is_an_error_of_put_and_takes_no_room():
    q = ringpipe.Queue(1)
    for _ in range(3):
        with pytest.raises((AttributeError, pickle.PicklingError)):
            q.put(lambda: 1)
    q.put(1, timeout=5)
    assert q.get() == 1


@pytest.mark.parametrize("kind", KINDS[:2])
def test_a_queue_without_a_limit_is_full_when_its_ring_is(kind, thread):
    q = getattr(ringpipe, kind)(capacity=1 << 16)
    count = 0
    with pytest.raises(queue.Full):
        while True:
            q.put(b"x" * 40, timeout=0)
            count += 1
    assert count == 1024 == q.qsize() and q.full()
    start = time.monotonic()
    with pytest.raises(queue.Full):
        q.put(b"more", timeout=0.1)
    assert 0.1 <= time.monotonic() - start < 5
    waits = thread(lambda: q.put(b"more"))
    assert not waits.join(0.05) and waits.is_alive()
    for _ in range(count):
        assert q.get() == b"x" * 40
    assert q.get() == b"more"
    assert q.empty() and q.qsize() == 0 and not q.full()


def test_a_limited_queue_whose_ring_is_full_gives_the_place_back():
    q = ringpipe.Queue(2000, capacity=1 << 16)
    for n in range(1024):
        q.put(n)
    for _ in range(1000):
        with pytest.raises(queue.Full):
            q.put_nowait("more")
    assert [q.get() for _ in range(1024)] == list(range(1024))
    q.put("more")
    assert q.get() == "more"


Point = collections.namedtuple("Point", "x y")
SHORT = [0, 255, 256, -1, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**40]
SHORT += [0.0, -0.0, 1e300, float("-inf"), True, False, None, "", "a" * 255, "a" * 256, "\0é\U0001f600", "é" * 127, "é" * 128, "\ud800"]
SHORT += [b"", bytes(range(255)), bytes(256)]
SHORT += [(), (1,), (1, "job", 2.5), (None, True, b"t.", -1), tuple(range(8)), tuple(range(9)), ("a" * 124, "b" * 124), ("a" * 130, "b" * 130)]
SHORT += [(1, (2,)), ([],), (2**70,), ("\ud800",), (1.5, {"a": 1}), Point(1, 2), (Point(1, 2),)]


@pytest.mark.parametrize("obj", SHORT, ids=range(len(SHORT)))
def test_the_shortest_objects_are_ordinary_pickles_too(obj):
    def same(got):
        return repr(got) == repr(obj) and type(got) is type(obj)

    def is_pickle(data):
        try:
            return same(pickle.loads(data))
        except Exception:
            return False

    q = ringpipe.SimpleQueue(capacity=1 << 16)
    q.put(obj)
    memory = os.pread(q._parts()[2][0], 1 << 18, 0)
    assert any(is_pickle(memory[at:]) for at in range(0, len(memory), 64) if memory[at : at + 1] == b"\x80")
    assert same(q.get())


def test_what_is_no_pickle_is_not_taken_for_one():
    r, w = ringpipe.Pipe(False)
    broken_items = (b"J\0", b"C\x05abc", b"", b"\x8c\x01\xff")
    for broken in [b"\x80\x04%b." % item for item in broken_items] + [b"\x80\x04(N%bt." % item for item in broken_items if item]:
        w.send_bytes(broken)
        with pytest.raises((pickle.UnpicklingError, EOFError, UnicodeDecodeError, IndexError)):
            r.recv()


def test_capacities():
    for wrong in (0, 1 << 40):
        with pytest.raises(ValueError):
            ringpipe.Queue(capacity=wrong)
    q = ringpipe.SimpleQueue(capacity=1 << 20)
    for n in range(10_000):
        q.put(n)
    assert [q.get() for _ in range(10_000)] == list(range(10_000))


def test_objects_longer_than_the_ring_pass():
    q = ringpipe.Queue(capacity=1 << 16)
    for size in (20_000, 65_300, 65_536, 1 << 20, 20 << 20):
        q.put(b"x" * size)
        q.put(size)
        assert q.get() == b"x" * size
        assert q.get(timeout=5) == size


def test_nothing_is_left_behind():
    def fds():
        return len(os.listdir("/proc/self/fd"))

    q = ringpipe.Queue(3)
    before = fds()
    for kind in KINDS * 20:
        q = getattr(ringpipe, kind)()
        q.put(1)
        q.get()
        del q
    gc.collect()
    q = ringpipe.Queue()
    q.close()
    assert fds() <= before


def test_what_is_no_queue_is_refused_and_leaks_nothing():
    q = ringpipe.SimpleQueue()
    receiving, sending, fds = q._parts()
    before = len(os.listdir("/proc/self/fd"))
    for wrong in ((sending, receiving, fds), (b"x" * 16, sending, fds), (receiving, sending, [fds[1], fds[0], fds[2]])):
        fresh = ringpipe.SimpleQueue.__new__(ringpipe.SimpleQueue)
        with pytest.raises(OSError):
            fresh._attach(wrong[0], wrong[1], [os.dup(fd) for fd in wrong[2]])
        assert fresh._closed
    assert len(os.listdir("/proc/self/fd")) == before
    q.put(1)
    assert q.get() == 1


# --- across processes -------------------------------------------------------------------------------


def finish(*processes):
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(context, kind):
    there, back = (getattr(ringpipe, kind)(ctx=context) for _ in range(2))
    there.put("sent before")
    process = context.Process(target=queue_helpers.echo, args=(there, back))
    process.start()
    assert back.get() == "sent before"
    for message in (1, "x" * 1_000_000, b"", [ringpipe.Queue]):
        there.put(message)
        assert back.get() == message
    there.put(None)
    finish(process)


def test_a_limit_holds_across_processes(context):
    q = ringpipe.Queue(3, ctx=context)
    process = context.Process(target=queue_helpers.put_all, args=(q, range(10)))
    process.start()
    until(lambda: q.qsize() == 3)
    time.sleep(0.05)
    assert q.qsize() == 3 and q.full()
    assert [q.get(timeout=30) for _ in range(10)] == list(range(10))
    finish(process)
    process = context.Process(target=queue_helpers.wait_for_nothing, args=(q,))
    process.start()
    finish(process)


def test_tasks_are_done_in_other_processes(context):
    q = ringpipe.JoinableQueue(ctx=context)
    workers = [context.Process(target=queue_helpers.finish_tasks, args=(q,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for n in range(50):
        q.put(n)
    q.join()
    assert q.empty()
    for _ in workers:
        q.put(None)
    q.join()
    finish(*workers)


@pytest.mark.parametrize("maxsize", [0, 7])
def test_four_producers_and_four_consumers_pass_each_item_once(context, maxsize):
    count = 2_000
    q, back = ringpipe.Queue(maxsize, ctx=context), ringpipe.Queue(ctx=context)
    producers = [context.Process(target=queue_helpers.put_all, args=(q, range(n, 4 * count, 4))) for n in range(4)]
    consumers = [context.Process(target=queue_helpers.consume, args=(q, back)) for _ in range(4)]
    for process in producers + consumers:
        process.start()
    finish(*producers)
    for _ in consumers:
        q.put(None)
    got = [back.get(timeout=60) for _ in consumers]
    finish(*consumers)
    assert sorted(item for items in got for item in items) == list(range(4 * count))
    # Those of one producer come in order to each consumer.
    for items in got:
        for n in range(4):
            of_one = [item for item in items if item % 4 == n]
            assert of_one == sorted(of_one)
    assert q.empty() and q.qsize() == 0


def test_several_threads_put_for_another_process(context, thread):
    q, back = ringpipe.Queue(ctx=context), ringpipe.SimpleQueue(ctx=context)
    process = context.Process(target=queue_helpers.consume, args=(q, back))
    process.start()
    for giver in [thread(lambda n=n: [q.put(4 * i + n) for i in range(500)]) for n in range(4)]:
        giver.join()
    q.put(None)
    assert sorted(back.get()) == list(range(2000))
    finish(process)


# --- death ---------------------------------------------------------------------------------------------


def test_consumers_that_are_killed_lose_one_item_each_at_most():
    context = multiprocessing.get_context("fork")
    rounds, count = 12, 300
    q, back = ringpipe.Queue(), ringpipe.Queue()
    lost = killed = 0

    def start():
        process = context.Process(target=queue_helpers.consume_one_by_one, args=(q, back))
        process.start()
        return process

    consumers = [start() for _ in range(3)]
    for _ in range(rounds):
        for n in range(count):
            q.put(n)
        time.sleep(random.random() * 0.01)
        victim = consumers.pop(0)
        victim.kill()
        victim.join()
        killed += 1
        consumers.append(start())
        until(q.empty)
        got = []
        # Those who live may still have one in hand each.
        with pytest.raises(queue.Empty):
            while True:
                got.append(back.get(timeout=0.3)[1])
        assert len(got) == len(set(got))
        lost += count - len(got)
    assert lost <= killed, (lost, killed)
    for _ in consumers:
        q.put(None)
    finish(*consumers)


@pytest.mark.parametrize("maxsize", [0, 50])
def test_producers_that_are_killed_hold_nobody_up(maxsize):
    context = multiprocessing.get_context("fork")
    q = ringpipe.Queue(maxsize)
    producers = [context.Process(target=queue_helpers.produce_for_ever, args=(q,)) for _ in range(4)]
    for producer in producers:
        producer.start()
    last = {}

    def get(count):
        for _ in range(count):
            pid, n = q.get(timeout=30)
            assert n == last.get(pid, -1) + 1, "in order, none twice, none missing"
            last[pid] = n

    for producer in producers:
        get(random.randrange(200, 2000))
        producer.kill()
        producer.join()
    with pytest.raises(queue.Empty):
        while True:
            pid, n = q.get(timeout=0.2)
            assert n == last.get(pid, -1) + 1
            last[pid] = n
    q.put("still in use")
    assert q.get(timeout=10) == "still in use"


# --- signals, threads, fork ------------------------------------------------------------------------------


def parked():
    """Long enough for a call to be asleep for good."""
    return 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_runs_while_a_get_waits_and_the_get_goes_on(kind, handler, thread):
    q = getattr(ringpipe, kind)()
    ran = []
    later = handler(lambda: (ran.append(time.monotonic()), q.put("from the handler")))
    sent = time.monotonic() + parked()
    later(parked())
    assert q.get() == "from the handler"
    assert ran[0] - sent < 0.2


def test_a_handlers_exception_ends_a_get_that_has_taken_nothing(handler):
    q = ringpipe.Queue()
    later = handler(lambda: 1 / 0)
    later(parked())
    start = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        q.get()
    assert time.monotonic() - start < parked() + 0.3
    q.put(1)
    assert q.get() == 1


@pytest.mark.parametrize("maxsize", [0, 1024])
def test_a_handlers_exception_ends_a_put_that_has_put_nothing(handler, maxsize):
    q = ringpipe.Queue(maxsize, capacity=1 << 16)
    for n in range(1024):
        q.put(n)
    later = handler(lambda: 1 / 0)
    later(parked())
    start = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        q.put("never")
    assert time.monotonic() - start < parked() + 0.3
    assert [q.get() for _ in range(1024)] == list(range(1024))
    assert q.empty()


def test_signals_change_no_timeout(handler):
    q = ringpipe.Queue()
    later = handler(lambda: None)
    for n in range(1, 20):
        later(n * 0.02)
    start = time.monotonic()
    with pytest.raises(queue.Empty):
        q.get(timeout=0.5)
    assert 0.5 <= time.monotonic() - start < 0.9


def test_other_threads_run_while_a_get_or_a_put_waits(thread):
    q = ringpipe.Queue(capacity=1 << 16)
    got = []
    thread(lambda: got.append(q.get()))
    start = time.monotonic()
    while time.monotonic() - start < 0.1:
        pass
    q.put(0)
    until(lambda: got == [0])
    for n in range(1024):
        q.put(n)
    thread(lambda: q.put(1024))
    time.sleep(0.05)
    assert [q.get() for _ in range(1025)] == list(range(1025))


def test_threads_share_a_queue(thread):
    q, got = ringpipe.Queue(), []

    def take():
        while (item := q.get()) is not None:
            got.append(item)

    takers = [thread(take) for _ in range(3)]
    givers = [thread(lambda n=n: [q.put(4 * i + n) for i in range(1000)]) for n in range(4)]
    for giver in givers:
        giver.join()
    for _ in takers:
        q.put(None)
    for taker in takers:
        taker.join()
    assert sorted(got) == list(range(4000))


def test_a_close_while_another_thread_waits(thread):
    q = ringpipe.Queue()
    got = []
    receiving, sending, fds = q._parts()
    other = ringpipe.SimpleQueue.__new__(ringpipe.SimpleQueue)
    other._attach(receiving, sending, [os.dup(fd) for fd in fds])
    thread(lambda: got.append(q.get()))
    time.sleep(0.05)
    start = time.monotonic()
    q.close()
    assert time.monotonic() - start < 1
    other.put("to who waits")
    until(lambda: got == ["to who waits"])


@pytest.mark.parametrize("asleep", [0.001, 0.1])
def test_a_fork_while_another_thread_waits(fork, thread, asleep):
    q, back = ringpipe.Queue(), ringpipe.Queue()
    got = []
    for n in range(5):
        waits = thread(lambda: got.append(q.get()))
        time.sleep(asleep)

        def child(n=n):
            back.put(("child", n))
            assert q.get(timeout=30) is not None

        start = time.monotonic()
        fork(child)
        assert time.monotonic() - start < 1
        assert back.get(timeout=30) == ("child", n)
        q.put(n)
        q.put(n)
        waits.join(30)
        assert len(got) == n + 1


def run(program):
    return subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60)


def test_the_interpreter_exits_with_queues_open_and_daemon_threads_in_them():
    done = run("""
        import threading, time
        import ringpipe
        q, full = ringpipe.Queue(), ringpipe.Queue(capacity=1 << 16)
        for n in range(1024):
            full.put(n)
        q.put("never got")
        empty = ringpipe.SimpleQueue()
        for call in (empty.get, lambda: full.put(1)):
            threading.Thread(target=call, daemon=True).start()
        time.sleep(0.1)
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_was_put_is_there_when_its_process_is_gone(fork):
    q = ringpipe.Queue()
    fork(lambda: [q.put(n) for n in range(100)])
    os.wait()
    assert [q.get(False) for _ in range(100)] == list(range(100))


def test_a_get_that_waits_takes_no_processor_time():
    q = ringpipe.Queue()
    with pytest.raises(queue.Empty):
        q.get(timeout=0.1)
    before = time.process_time()
    with pytest.raises(queue.Empty):
        q.get(timeout=1)
    assert time.process_time() - before < 0.1


def test_a_terminated_get(fork):
    q = ringpipe.Queue()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        q.get()
        os._exit(0)
    time.sleep(0.1)
    os.kill(pid, signal.SIGTERM)
    assert os.waitpid(pid, 0)[1] == signal.SIGTERM
