"""What a connection does, case by case. Each test is run against multiprocessing.Pipe as well, so that none expects what the original does not do, except for what is
marked as ringpipe's own."""

import array
import copy
import errno
import functools
import gc
import math
import multiprocessing
import multiprocessing.connection
import os
import pickle
import resource
import select
import signal
import socket
import stat
import sys
import threading
import time
import weakref
from decimal import Decimal
from fractions import Fraction
from multiprocessing import BufferTooShort
from multiprocessing.connection import wait
from multiprocessing.reduction import ForkingPickler

import pytest
from conftest import until

import ringpipe

BOTH = pytest.mark.parametrize("Pipe", [ringpipe.Pipe, multiprocessing.Pipe], ids=["ringpipe", "stock"])
KINDS = pytest.mark.parametrize("duplex", [True, False], ids=["duplex", "simplex"])


def raises(kind, message):
    """pytest.raises for exactly this type, with exactly this message."""

    class Exactly:
        def __enter__(self):
            self.inner = pytest.raises(kind)
            self.info = self.inner.__enter__()
            return self.info

        def __exit__(self, *args):
            done = self.inner.__exit__(*args)
            assert type(self.info.value) is kind
            assert str(self.info.value) == message
            return done

    return Exactly()


def closed():
    return raises(OSError, "handle is closed")


# --- construction and attributes ----------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("given, duplex", [((), True), ((1,), True), (("x",), True), ((0,), False), ((None,), False), (("",), False)])
def test_the_argument_counts_for_its_truth_value(Pipe, given, duplex):
    pair = Pipe(*given)
    assert type(pair) is tuple
    a, b = pair
    assert (a.readable, a.writable, b.readable, b.writable) == ((True,) * 4 if duplex else (True, False, False, True))


@BOTH
def test_duplex_is_a_keyword(Pipe):
    r, w = Pipe(duplex=False)
    assert not r.writable and not w.readable


@BOTH
@KINDS
def test_out_of_descriptors_nothing_is_leaked(Pipe, duplex):
    before = len(os.listdir("/proc/self/fd"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = os.dup(0)
    os.close(highest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
    try:
        with pytest.raises(OSError) as info:
            Pipe(duplex)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert info.value.errno == errno.EMFILE
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


@BOTH
@KINDS
def test_descriptors_are_not_inheritable_and_closed_with_the_connection(Pipe, duplex):
    before = set(os.listdir("/proc/self/fd"))
    a, b = Pipe(duplex)
    own = set(os.listdir("/proc/self/fd")) - before
    for fd in own:
        try:
            assert not os.get_inheritable(int(fd))
        except OSError:
            pass  # the one that the directory was read through
    a.close()
    b.close()
    assert set(os.listdir("/proc/self/fd")) == before


@BOTH
def test_attributes_are_read_only_and_keep_their_values(Pipe):
    r, w = Pipe(False)
    for name in ("closed", "readable", "writable"):
        with pytest.raises(AttributeError):
            setattr(r, name, True)
    assert (r.closed, r.readable, r.writable) == (False, True, False)
    r.close()
    assert (r.closed, r.readable, r.writable) == (True, True, False)
    assert (w.closed, w.readable, w.writable) == (False, False, True)


@BOTH
def test_an_object_is_an_object(Pipe):
    a, b = Pipe()
    assert isinstance(a, multiprocessing.connection.Connection)
    assert a != b and a == a and len({a, b, a}) == 2 and a
    a.note = "mine"
    assert a.__dict__["note"] == "mine"
    ref = weakref.ref(b)
    del b
    assert ref() is None


@BOTH
@KINDS
def test_fileno_is_a_stable_number(Pipe, duplex):
    a, b = Pipe(duplex)
    assert type(a.fileno()) is int and a.fileno() == a.fileno() and a.fileno() != b.fileno()
    a.close()
    with closed():
        a.fileno()


def test_fileno_is_a_unix_stream_socket():
    for duplex in (True, False):
        for end in ringpipe.Pipe(duplex):
            assert stat.S_ISSOCK(os.fstat(end.fileno()).st_mode)
            with socket.socket(fileno=os.dup(end.fileno())) as s:
                assert (s.family, s.type) == (socket.AF_UNIX, socket.SOCK_STREAM)


OPERATIONS = {
    "send": lambda c: c.send(lambda: None),
    "send_bytes": lambda c: c.send_bytes(None, -1),
    "recv": lambda c: c.recv(),
    "recv_bytes": lambda c: c.recv_bytes(-1),
    "recv_bytes_into": lambda c: c.recv_bytes_into(None, -1),
    "poll": lambda c: c.poll("x"),
}


@BOTH
@pytest.mark.parametrize("name", OPERATIONS)
def test_first_of_all_it_is_checked_whether_the_connection_is_open_and_of_the_right_direction(Pipe, name):
    r, w = Pipe(False)
    wrong, message = (r, "connection is read-only") if name.startswith("send") else (w, "connection is write-only")
    with raises(OSError, message) as info:
        OPERATIONS[name](wrong)
    assert info.value.errno is None
    r.close()
    w.close()
    with closed() as info:
        OPERATIONS[name](wrong)
    assert info.value.errno is None


# --- sending ------------------------------------------------------------------------------------------


class Custom:
    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return type(other) is Custom and other.value == self.value


class Unpicklable:
    def __reduce__(self):
        raise RuntimeError("no")


OBJECTS = [
    None, True, 0, -1, 2**200, 1.5, math.inf, "", "x" * 100, "\ud800", b"", b"abc", (), (1, "a", None), [1, [2, [3, [4, [5]]]]], {"a": {1: (2,)}},
    {1, 2}, frozenset({3}), 1 + 2j, Custom(7), [Custom(1)] * 3, {"x": Custom(2)}, list(range(1000)), Decimal("1.5"), Fraction(1, 3), bytearray(b"x"),
    range(3), ..., int, len, Custom,
]  # fmt: skip


@BOTH
@KINDS
@pytest.mark.parametrize("obj", OBJECTS, ids=lambda obj: repr(obj)[:20])
def test_objects_arrive(Pipe, duplex, obj):
    r, w = Pipe(duplex)
    assert w.send(obj) is None
    received = r.recv()
    assert received == obj and type(received) is type(obj)
    w.send_bytes(bytes(ForkingPickler.dumps(obj)))
    assert r.recv() == obj


@pytest.mark.parametrize("obj", [obj for obj in OBJECTS if obj is not Ellipsis], ids=lambda obj: repr(obj)[:20])
def test_what_is_sent_is_what_the_pickler_of_multiprocessing_makes(obj):
    r, w = ringpipe.Pipe(False)
    w.send(obj)
    message = r.recv_bytes()
    assert message[1] in (pickle.DEFAULT_PROTOCOL, 5)
    assert message == bytes(ForkingPickler.dumps(obj, message[1]))


@pytest.mark.parametrize("config, refused", [({}, False), ({"Py_GIL_DISABLED": 0}, False), ({"Py_GIL_DISABLED": 1}, True)])
def test_a_python_without_a_gil_is_refused(config, refused):
    if refused:
        with pytest.raises(ImportError, match="free-threaded"):
            ringpipe._build.check(config)
    else:
        ringpipe._build.check(config)


@BOTH
@pytest.mark.parametrize("place", [b"abc", memoryview(bytearray(9))[::2]], ids=["read-only", "with gaps"])
def test_a_place_that_cannot_be_written_to_is_found_out_when_there_is_a_message(Pipe, place):
    r, w = Pipe(False)
    with pytest.raises(ValueError, match="offset too large"):
        r.recv_bytes_into(place, 10)
    w.send_bytes(b"xy")
    with pytest.raises(TypeError):
        r.recv_bytes_into(place)
    w.close()
    if Pipe is ringpipe.Pipe:
        assert r.recv_bytes() == b"xy"
    with pytest.raises(EOFError):
        r.recv_bytes_into(place)


@BOTH
def test_wrong_arguments_are_told_by_the_name_of_the_method(Pipe):
    r, w = Pipe(False)
    for call in (lambda: r.recv(1), lambda: w.send(), lambda: r.poll(1, 2), lambda: r.recv_bytes(x=1), lambda: w.send_bytes()):
        with pytest.raises(TypeError, match=r"^_?Connection(Base)?\.[a-z_]+\(\)|^[a-z_]+\(\)"):
            call()


@BOTH
def test_shared_and_circular_references_stay(Pipe):
    r, w = Pipe(False)
    inner = ["x"]
    circle = [inner, inner]
    circle.append(circle)
    w.send(circle)
    got = r.recv()
    assert got[0] is got[1] and got[2] is got and got[0] == ["x"]


@BOTH
def test_what_cannot_be_pickled_leaves_the_stream_clean(Pipe):
    r, w = Pipe(False)
    with pytest.raises(RuntimeError):
        w.send([Unpicklable()])
    with pytest.raises((pickle.PicklingError, AttributeError)):
        w.send(lambda: None)
    assert not r.poll()
    w.send(1)
    assert r.recv() == 1


class Registered:
    pass


@BOTH
def test_registered_reducers_are_honoured(Pipe):
    ForkingPickler.register(Registered, lambda obj: (str, ("reduced",)))
    try:
        r, w = Pipe(False)
        w.send([Registered()])
        assert r.recv() == ["reduced"]
    finally:
        del ForkingPickler._extra_reducers[Registered]


class Sends:
    def __init__(self, w):
        self.w = w

    def __reduce__(self):
        self.w.send("first")
        return str, ("second",)


@BOTH
def test_a_reducer_may_use_the_connection(Pipe):
    r, w = Pipe(False)
    w.send(Sends(w))
    assert (r.recv(), r.recv()) == ("first", "second")


@BOTH
def test_send_bytes_takes_a_part(Pipe):
    r, w = Pipe(False)
    for args, expected in [
        ((b"abcdef",), b"abcdef"),
        ((b"abcdef", 2), b"cdef"),
        ((b"abcdef", 2, 3), b"cde"),
        ((b"abcdef", 6), b""),
        ((b"abcdef", 0, 0), b""),
        ((b"abcdef", True), b"bcdef"),
        ((b"abcdef", 0, None), b"abcdef"),
        ((array.array("i", [1, 2, 3]), 2), array.array("i", [1, 2, 3]).tobytes()[2:]),
        ((memoryview(b"abcdef")[1:4],), b"bcd"),
        ((bytearray(b"xyz"), 1, 1), b"y"),
    ]:
        assert w.send_bytes(*args) is None
        assert r.recv_bytes() == expected
    w.send_bytes(buf=b"abc", offset=1, size=1)
    assert r.recv_bytes() == b"b"
    w.send_bytes(b"")
    assert r.poll() and r.recv_bytes() == b""


class Index:
    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value


@BOTH
@pytest.mark.parametrize(
    "args, kind, message",
    [
        ((b"abc", -1), ValueError, "offset is negative"),
        ((b"abc", -1, -1), ValueError, "offset is negative"),
        ((b"abc", 4), ValueError, "buffer length < offset"),
        ((b"abc", 4, -1), ValueError, "buffer length < offset"),
        ((b"abc", 1, -1), ValueError, "size is negative"),
        ((b"abc", 1, 3), ValueError, "buffer length < offset + size"),
        (("abc",), TypeError, None),
        ((None,), TypeError, None),
        ((3,), TypeError, None),
        ((b"abc", 1.0), TypeError, None),
        ((b"abc", 0, 1.0), TypeError, None),
        ((b"abc", None), TypeError, None),
        ((b"abc", Index(1)), TypeError, None),
        ((), TypeError, None),
        ((memoryview(b"abcdef")[::2],), TypeError, None),
    ],
    ids=str,
)
def test_send_bytes_refuses(Pipe, args, kind, message):
    r, w = Pipe(False)
    with pytest.raises(kind) as info:
        w.send_bytes(*args)
    assert type(info.value) is kind
    assert message is None or str(info.value) == message
    assert not r.poll()


@BOTH
def test_a_released_view_is_a_value_error(Pipe):
    r, w = Pipe(False)
    view = memoryview(b"abc")
    view.release()
    with pytest.raises(ValueError):
        w.send_bytes(view)
    with pytest.raises(ValueError):
        r.recv_bytes_into(view)
    assert not r.poll()


def test_long_buffers_with_gaps_are_refused_and_nothing_is_sent():
    r, w = ringpipe.Pipe(False)
    for gaps in (memoryview(bytes(100_000))[::2], memoryview(array.array("i", range(9)))[::2]):
        for args in ((gaps,), (gaps, 2), (gaps, 0, 5)):
            with pytest.raises(TypeError):
                w.send_bytes(*args)
    w.send_bytes(b"next")
    assert r.recv_bytes() == b"next"


def test_the_bytes_of_buffers_of_several_dimensions_are_sent():
    r, w = ringpipe.Pipe(False)
    for view in (memoryview(b"abcdef").cast("B", (2, 3)), memoryview(array.array("i", range(6))).cast("B").cast("i", (2, 3))):
        w.send_bytes(view)
        w.send_bytes(view, 2)
        assert r.recv_bytes() == view.tobytes() and r.recv_bytes() == view.tobytes()[2:]


@BOTH
def test_a_buffer_is_not_kept(Pipe):
    r, w = Pipe(False)
    data = bytearray(b"abc")
    w.send_bytes(data)
    data.extend(b"def")
    into = bytearray(10)
    r.recv_bytes_into(into)
    into.extend(b"more")


@BOTH
@KINDS
def test_a_buffer_cannot_be_resized_while_it_is_being_sent(Pipe, duplex, thread):
    r, w = Pipe(duplex)
    data = bytearray(3 << 20)
    sender = thread(w.send_bytes, data)
    assert r.poll(10)
    time.sleep(0.05)
    with pytest.raises(BufferError):
        data.append(1)
    assert len(r.recv_bytes()) == 3 << 20
    sender.join(10)
    data.append(1)


@BOTH
@KINDS
def test_without_a_peer_sending_is_a_broken_pipe_every_time(Pipe, duplex):
    r, w = Pipe(duplex)
    r.close()
    for message in (b"x", b"", bytes(1 << 20)) * 2:
        with raises(BrokenPipeError, "[Errno 32] Broken pipe") as info:
            w.send_bytes(message)
        assert info.value.errno == errno.EPIPE
    with pytest.raises(BrokenPipeError):
        w.send(1)
    assert not w.closed


@BOTH
@KINDS
def test_so_much_can_be_sent_unread(Pipe, duplex):
    r, w = Pipe(duplex)
    w.send_bytes(bytes(60_000))
    assert len(r.recv_bytes()) == 60_000
    for i in range(100):
        w.send_bytes(b"%100d" % i)
    assert [int(r.recv_bytes()) for _ in range(100)] == list(range(100))


@BOTH
@KINDS
def test_a_full_pipe_blocks_until_it_is_read_or_the_reader_is_gone(Pipe, duplex, thread):
    r, w = Pipe(duplex)
    for end in ("read", "gone"):
        count, outcome = [0], []

        def fill():
            try:
                while count[0] < 3000:
                    w.send_bytes(bytes(1000))
                    count[0] += 1
            except OSError as e:
                outcome.append(e)

        sender = thread(fill)
        until(lambda: count[0] > 20)
        time.sleep(0.1)
        seen = count[0]
        time.sleep(0.1)
        assert count[0] == seen < 3000
        if end == "read":
            for _ in range(3000):
                assert r.recv_bytes() == bytes(1000)
            sender.join(10)
            assert not outcome
        else:
            r.close()
            sender.join(10)
            # (A socket says once that it was reset.)
            assert isinstance(outcome[0], (BrokenPipeError, ConnectionResetError))


@BOTH
def test_messages_of_senders_without_a_lock_stay_whole(Pipe, thread):
    r, w = Pipe()
    for i in range(4):
        thread(lambda i=i: [w.send_bytes(bytes([i]) * 500) for _ in range(200)])
    counts = [0] * 4
    for _ in range(800):
        message = r.recv_bytes()
        assert message == message[:1] * 500
        counts[message[0]] += 1
    assert counts == [200] * 4


# --- receiving ----------------------------------------------------------------------------------------


def explode():
    raise RuntimeError("boom")


class Explodes:
    def __reduce__(self):
        return explode, ()


@BOTH
def test_a_message_that_cannot_be_unpickled_is_consumed(Pipe):
    r, w = Pipe(False)
    w.send(Explodes())
    w.send_bytes(b"no pickle")
    w.send_bytes(b"")
    w.send(1)
    with pytest.raises(RuntimeError):
        r.recv()
    with pytest.raises(pickle.UnpicklingError):
        r.recv()
    with raises(EOFError, "Ran out of input"):
        r.recv()
    assert r.recv() == 1


@BOTH
def test_recv_bytes_with_a_maximum(Pipe):
    r, w = Pipe(False)
    for maxlength in (3, None, 3.5, math.inf, True + 2, 2**100):
        w.send_bytes(b"abc")
        assert r.recv_bytes(maxlength) == b"abc"
    w.send_bytes(b"abc")
    with raises(ValueError, "negative maxlength"):
        r.recv_bytes(-1)
    with pytest.raises(TypeError):
        r.recv_bytes("x")
    assert r.recv_bytes(maxlength=4) == b"abc"
    w.close()
    with raises(ValueError, "negative maxlength"):
        r.recv_bytes(-1)


@BOTH
@pytest.mark.parametrize("length", [5, 500_000])
def test_a_message_that_is_too_long_ends_receiving_on_an_end_that_sends_too(Pipe, length, thread):
    a, b = Pipe()

    def send():
        try:
            b.send_bytes(bytes(length))
        except OSError:
            pass

    sender = thread(send)
    with raises(OSError, "bad message length") as info:
        a.recv_bytes(4)
    assert info.value.errno is None
    assert (a.closed, a.readable, a.writable) == (False, False, True)
    for receive in (a.recv, a.recv_bytes, a.poll):
        with raises(OSError, "connection is write-only"):
            receive()
    a.fileno()
    a.send(1)
    assert b.recv() == 1
    a.close()
    sender.join(10)
    with pytest.raises((EOFError, ConnectionResetError)):
        b.recv()


@BOTH
@pytest.mark.parametrize("length", [5, 500_000])
def test_a_message_that_is_too_long_closes_an_end_that_only_receives(Pipe, length, thread):
    r, w = Pipe(False)

    def send():
        try:
            w.send_bytes(bytes(length))
        except OSError:
            pass

    sender = thread(send)
    with raises(OSError, "bad message length"):
        r.recv_bytes(4)
    assert r.closed
    with closed():
        r.recv_bytes()
    sender.join(10)
    with pytest.raises(BrokenPipeError):
        w.send(1)


@BOTH
def test_recv_bytes_into(Pipe):
    r, w = Pipe(False)

    def receive(buf, *args, message=b"abcd", **kwargs):
        w.send_bytes(message)
        return r.recv_bytes_into(buf, *args, **kwargs)

    buf = bytearray(b"......")
    assert receive(buf) == 4 and buf == b"abcd.."
    assert receive(buf, 2) == 4 and buf == b"ababcd"
    assert receive(buf=buf, offset=True, message=b"x") == 1 and buf == b"axabcd"
    assert receive(buf, 6, message=b"") == 0
    view = memoryview(bytearray(4))
    assert receive(view[1:3], message=b"yz") == 2 and view.tobytes() == b"\0yz\0"
    numbers = array.array("i", [0] * 4)
    assert receive(numbers, message=array.array("i", [1, 2]).tobytes()) == 8 and list(numbers) == [1, 2, 0, 0]
    assert receive(numbers, 8, message=array.array("i", [3]).tobytes()) == 4 and list(numbers) == [1, 2, 3, 0]
    # Rounded down to whole items.
    numbers = array.array("i", [0] * 4)
    assert receive(numbers, message=b"\1\0\0\0\2\0") == 6 and list(numbers) == [1, 0, 0, 0]
    assert receive(numbers, 2, message=b"\5\0\0\0\2\0") == 6 and list(numbers) == [5, 2, 0, 0]
    long = bytearray(300_000)
    thread = threading.Thread(target=w.send_bytes, args=(bytes([7]) * 300_000,))
    thread.start()
    assert r.recv_bytes_into(long) == 300_000 and long == bytes([7]) * 300_000
    thread.join()
    # Of several dimensions the first one counts.
    flat = bytearray(6)
    with pytest.raises(BufferTooShort):
        receive(memoryview(flat).cast("B", (2, 3)), message=b"abc")
    assert receive(memoryview(flat).cast("B", (2, 3)), message=b"ab") == 2 and flat == b"ab\0\0\0\0"


@BOTH
@pytest.mark.parametrize(
    "args, kind, message",
    [
        ((bytearray(3), -1), ValueError, "negative offset"),
        ((bytearray(3), 4), ValueError, "offset too large"),
        ((3,), TypeError, None),
        (("abc",), TypeError, None),
        ((None, 0), TypeError, None),
        ((bytearray(3), "x"), TypeError, None),
    ],
    ids=str,
)
def test_recv_bytes_into_refuses_and_leaves_the_message(Pipe, args, kind, message):
    r, w = Pipe(False)
    w.send_bytes(b"ab")
    with pytest.raises(kind) as info:
        r.recv_bytes_into(*args)
    assert message is None or str(info.value) == message
    assert r.recv_bytes() == b"ab"


@pytest.mark.parametrize("args", [(b"abc",), (bytearray(3), 1.0), (memoryview(bytearray(6))[::2],), (memoryview(b"abc"), 1)], ids=str)
def test_no_message_is_lost_to_a_place_that_cannot_be_written_to(args):
    r, w = ringpipe.Pipe(False)
    w.send_bytes(b"ab")
    with pytest.raises(TypeError):
        r.recv_bytes_into(*args)
    assert r.recv_bytes() == b"ab"


@BOTH
@pytest.mark.parametrize("args", [(), (1,)])
@pytest.mark.parametrize("length", [5, 200_000])
def test_a_message_that_does_not_fit_is_in_the_error(Pipe, args, length, thread):
    r, w = Pipe(False)
    thread(w.send_bytes, b"x" * length)
    buf = bytearray(b"....")
    with pytest.raises(BufferTooShort) as info:
        r.recv_bytes_into(buf, *args)
    assert type(info.value) is BufferTooShort and info.value.args == (b"x" * length,)
    assert buf == b"...."
    w.send_bytes(b"ab")
    assert r.recv_bytes_into(buf, *args) == 2


@BOTH
@KINDS
def test_end_of_file_comes_after_what_was_sent_and_every_time(Pipe, duplex):
    r, w = Pipe(duplex)
    w.send(1)
    w.send_bytes(b"")
    w.close()
    assert r.poll()
    assert r.recv() == 1 and r.recv_bytes() == b""
    for _ in range(2):
        assert r.poll() and r.poll(1) and r.poll(None)
        for receive in (r.recv, r.recv_bytes, lambda: r.recv_bytes_into(bytearray(3)), lambda: r.recv_bytes(3)):
            with pytest.raises(EOFError) as info:
                receive()
            assert info.value.args == ()
    assert not r.closed


def test_end_of_file_is_never_a_reset():
    a, b = ringpipe.Pipe()
    a.send("unread")
    b.send("last")
    b.close()
    assert a.recv() == "last"
    with pytest.raises(EOFError):
        a.recv()
    with pytest.raises(BrokenPipeError):
        a.send(1)


@BOTH
def test_a_sender_that_dies_inside_a_message(Pipe, fork):
    r, w = Pipe(False)
    pid = os.fork()
    if pid == 0:
        r.close()
        w.send_bytes(bytes(10 << 20))
        os._exit(0)
    w.close()
    assert r.poll(10)
    time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with raises(OSError, "got end of file during message"):
        r.recv_bytes()
    with pytest.raises(EOFError):
        r.recv_bytes()


# --- poll and wait ------------------------------------------------------------------------------------


@BOTH
@KINDS
def test_poll(Pipe, duplex):
    r, w = Pipe(duplex)
    assert r.poll() is False and r.poll(0) is False and r.poll(-1) is False and r.poll(-math.inf) is False
    for timeout in (0.05, Fraction(1, 20), 0.0001):
        start = time.monotonic()
        assert r.poll(timeout) is False
        assert float(timeout) <= time.monotonic() - start < timeout + 1
    assert r.poll(timeout=False) is False
    w.send_bytes(b"")
    for args in ((), (0,), (-1,), (1,), (None,), (True,)):
        assert r.poll(*args) is True
    assert r.recv_bytes() == b""


@BOTH
@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize(
    "timeout, kind",
    [("x", TypeError), ([], TypeError), (Decimal(1), TypeError), (math.inf, OverflowError), (2147483.648, OverflowError), (math.nan, ValueError)],
)
def test_odd_timeouts(Pipe, there, timeout, kind):
    r, w = Pipe(False)
    if there:
        w.send(1)
    with pytest.raises(kind):
        r.poll(timeout)


@BOTH
def test_wait(Pipe):
    r, w = Pipe(False)
    a, b = Pipe()
    start = time.monotonic()
    assert wait([r, a, b], 0.05) == [] and time.monotonic() - start >= 0.05
    b.send(1)
    assert wait([r, a, b]) == [a]
    w.send(1)
    assert wait((r, a, b), 0) == [r, a]
    r.recv()
    assert wait(iter([r, a, b]), 0) == [a]
    a.recv()
    assert wait([r, a, b], 0) == []
    w.close()
    b.close()
    assert wait([r, a], 10) == [r, a]
    b.close()
    with closed():
        wait([a, b], 0)
    with pytest.raises(KeyError):
        wait([a, a], 0)
    s, t = socket.socketpair()
    c, d = Pipe()
    with s, t:
        s.send(b"x")
        assert wait([c, t], 0) == [t]
        d.send(1)
        assert wait([c, t], 0) == [c, t]


@BOTH
def test_an_end_that_only_sends_is_ready_when_the_reader_is_gone(Pipe):
    r, w = Pipe(False)
    assert wait([w], 0.02) == []
    w.send(1)
    assert wait([w], 0.02) == []
    r.recv()
    assert wait([w], 0.02) == []
    r.close()
    assert wait([w], 10) == [w]


@BOTH
@KINDS
def test_the_descriptor_is_readable_exactly_while_there_is_something(Pipe, duplex, fork):
    r, w = Pipe(duplex)
    poller = select.epoll()
    poller.register(r.fileno(), select.EPOLLIN)

    def send():
        r.close()
        for i in range(300):
            w.send(i)
            time.sleep(0.001 * (i % 3 == 0))
        w.close()

    fork(send)
    w.close()
    expected = 0
    while True:
        assert poller.poll(10), f"message {expected} was missed"
        try:
            assert r.recv() == expected
            expected += 1
        except EOFError:
            break
    assert expected == 300
    a, b = Pipe()
    assert not select.select([a], [], [], 0)[0]
    for _ in range(50):
        b.send(1)
        assert select.select([a], [], [], 0)[0]
        assert a.recv() == 1
        assert not select.select([a], [], [], 0)[0]


@BOTH
def test_a_long_wait_in_poll_ends_with_a_message(Pipe, thread):
    r, w = Pipe(False)
    for timeout in (None, 30):
        timer = threading.Timer(0.1, w.send, (1,))
        timer.start()
        start = time.monotonic()
        assert r.poll(timeout)
        assert 0.05 < time.monotonic() - start < 5
        r.recv()


# --- closing ------------------------------------------------------------------------------------------


@BOTH
def test_closing(Pipe):
    a, b = Pipe()
    with a as same:
        assert same is a
        assert not a.closed
    assert a.closed
    a.close()
    with a:
        pass
    with pytest.raises(EOFError):
        b.recv()


@BOTH
@pytest.mark.filterwarnings("error")
def test_the_last_reference_closes(Pipe):
    a, b = Pipe()
    bound = a.send
    del a
    bound(1)
    assert b.recv() == 1 and not b.poll()
    del bound
    with pytest.raises(EOFError):
        b.recv()
    a, b = Pipe()
    a.self = a
    del a
    assert not b.poll()
    gc.collect()
    assert b.poll()


def test_pipes_leak_nothing():
    def once():
        for duplex in (True, False):
            r, w = ringpipe.Pipe(duplex)
            r.poll(0.01)
            w.send([1])
            r.recv()
            r.fileno()
            pickle.dumps(r._parts())

    once()
    before = len(os.listdir("/proc/self/fd")), len(open("/proc/self/maps").readlines())
    for _ in range(50):
        once()
    after = len(os.listdir("/proc/self/fd")), len(open("/proc/self/maps").readlines())
    assert after[0] == before[0] and after[1] <= before[1] + 10


def test_connections_are_not_made_by_calling_the_class():
    with pytest.raises(TypeError):
        ringpipe.Connection(3)
    empty = ringpipe.Connection.__new__(ringpipe.Connection)
    assert empty.closed
    with closed():
        empty.recv()
