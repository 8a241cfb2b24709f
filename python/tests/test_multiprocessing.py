"""Connections that are passed to other processes, by each of the ways to start them, and over other connections."""

import copy
import multiprocessing
import os
import pickle
from multiprocessing import reduction
from multiprocessing.reduction import ForkingPickler

import mp_helpers
import pytest

import ringpipe

METHODS = ["fork", "spawn", "forkserver"]


@pytest.fixture(params=METHODS)
def context(request):
    return multiprocessing.get_context(request.param)


def finish(process):
    process.join(30)
    assert process.exitcode == 0


def test_a_connection_as_an_argument(context):
    mine, theirs = ringpipe.Pipe()
    mine.send("sent before")
    process = context.Process(target=mp_helpers.echo, args=(theirs,))
    process.start()
    theirs.close()
    assert mine.recv() == "sent before"
    for message in (1, "x" * 1_000_000, b"", None, [ringpipe.Pipe]):
        mine.send(message)
        assert mine.recv() == message
    mine.close()
    if context.get_start_method() == "fork":
        # It has inherited the other end as well, which never ends its file.
        process.terminate()
        process.join()
    else:
        finish(process)


def test_one_way_pipes_as_arguments(context):
    (r, w), (r2, w2) = ringpipe.Pipe(False), ringpipe.Pipe(duplex=False)
    process = context.Process(target=mp_helpers.add, args=(r, w2))
    process.start()
    r.close()
    w2.close()
    w.send([1, 2, 3])
    assert r2.recv() == 6
    with pytest.raises(EOFError):
        r2.recv()
    finish(process)
    with pytest.raises(BrokenPipeError):
        w.send(1)


def test_both_ends_of_a_pipe_as_arguments(context):
    a, b = ringpipe.Pipe()
    process = context.Process(target=mp_helpers.both_ends, args=(a, b))
    process.start()
    finish(process)
    assert a.recv() == "through me"
    a.close()
    with pytest.raises(EOFError):
        b.recv()


def test_a_connection_over_another(context):
    mine, theirs = ringpipe.Pipe()
    process = context.Process(target=mp_helpers.take, args=(theirs,))
    process.start()
    a, b = ringpipe.Pipe()
    mine.send(b)
    b.close()
    assert a.recv() == "received over a connection"
    assert mine.recv() == "done"
    finish(process)
    with pytest.raises(EOFError):
        a.recv()


def test_a_connection_that_the_child_made(context):
    r, w = ringpipe.Pipe(False)
    process = context.Process(target=mp_helpers.from_the_child, args=(w,))
    process.start()
    received = r.recv()
    assert isinstance(received, ringpipe.Connection)
    assert r.recv() == (received.readable, received.writable, received.closed) == (True, True, False)
    assert received.recv() == "made in the child"
    received.send("taken")
    finish(process)


def test_a_connection_through_a_queue(context):
    a, b = ringpipe.Pipe(False)
    queue = context.Queue()
    process = context.Process(target=mp_helpers.take_from_queue, args=(queue, "queue"))
    process.start()
    queue.put(b)
    assert a.recv()[:2] == ("queue", "ringpipe._connection")
    finish(process)


def test_a_connection_as_an_argument_of_a_pool(context):
    r, w = ringpipe.Pipe(False)
    with context.Pool(1) as pool:
        assert pool.apply(mp_helpers.send_to, (w,)) is False
    assert r.recv() == "from the pool"


def test_a_connection_in_flight_keeps_the_pipe_open():
    a, b = ringpipe.Pipe()
    r, w = ringpipe.Pipe(False)
    w.send(b)
    b.close()
    assert not a.poll(0.1)
    arrived = r.recv()
    arrived.send(1)
    assert a.recv() == 1
    arrived.close()
    with pytest.raises(EOFError):
        a.recv()


@pytest.mark.parametrize("dumps", [ForkingPickler.dumps, pickle.dumps, lambda c: ringpipe.Pipe()[0].send(c), copy.copy])
def test_a_closed_connection_cannot_be_pickled(dumps):
    a, b = ringpipe.Pipe()
    a.close()
    with pytest.raises(OSError, match="^handle is closed$"):
        dumps(a)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_and_copies_are_copies_of_the_end(protocol):
    a, b = ringpipe.Pipe()
    for other in (pickle.loads(pickle.dumps(b, protocol)), copy.copy(b), copy.deepcopy(b)):
        other.send("from the copy")
        assert a.recv() == "from the copy"
        other.close()
        b.send(1)
        assert a.recv() == 1
    b.close()
    with pytest.raises(EOFError):
        a.recv()


def test_what_is_no_end_is_refused_and_leaks_nothing():
    a, b = ringpipe.Pipe()
    frame, fds = a._parts()
    before = len(os.listdir("/proc/self/fd"))
    for wrong in ((frame, fds[:1], True, True), (frame, fds, True, False), (b"x" * 16, fds, True, True), (frame, [fds[1], fds[0], fds[2]], True, True)):
        fresh = ringpipe.Connection.__new__(ringpipe.Connection)
        with pytest.raises(OSError):
            fresh._attach(wrong[0], [os.dup(fd) for fd in wrong[1]], *wrong[2:])
        assert fresh.closed
    assert len(os.listdir("/proc/self/fd")) == before
    a.send(1)
    assert b.recv() == 1


def test_handles_are_sent_over_connections(tmp_path):
    mine, theirs = ringpipe.Pipe()
    with open(tmp_path / "file", "w+") as file:
        reduction.send_handle(mine, file.fileno(), os.getpid())
        fd = reduction.recv_handle(theirs)
        os.write(fd, b"written")
        os.close(fd)
        file.seek(0)
        assert file.read() == "written"
    # Of other connections' the standard library takes care.
    a, b = multiprocessing.Pipe()
    reduction.send_handle(a, 1, os.getpid())
    os.close(reduction.recv_handle(b))
