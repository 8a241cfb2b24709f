"""Objects with large buffers, through a connection and beside the original, and receiving in place."""

import array
import copyreg
import gc
import os
import pickle
import random
import signal
import struct
import time
from multiprocessing import BufferTooShort
from multiprocessing.reduction import ForkingPickler

import pytest
from conftest import until

import ringpipe

MIB = 1 << 20


def through(obj, duplex=False):
    """What arrives of an object that a thread sends."""
    r, w = ringpipe.Pipe(duplex)
    return exchange(r, w, lambda: w.send(obj), r.recv)


def exchange(r, w, send, receive):
    import threading

    raised = []

    def body():
        try:
            send()
        except BaseException as e:
            raised.append(e)

    sender = threading.Thread(target=body, daemon=True)
    sender.start()
    try:
        return receive()
    finally:
        sender.join(30)
        assert not sender.is_alive() and not raised, raised


def in_stock(obj):
    return pickle.loads(ForkingPickler.dumps(obj))


class Holder:
    def __init__(self, *things):
        self.things = things

    def __eq__(self, other):
        return type(other) is Holder and self.things == other.things


BIG = bytes(range(256)) * (MIB // 256)
OBJECTS = [
    b"", BIG, BIG[: 64 << 10], BIG[: (64 << 10) - 1], bytearray(BIG), [BIG], (BIG, BIG), [BIG, BIG[:-1], bytearray(BIG)], {"a": BIG, "b": [bytearray(BIG)]},
    Holder(BIG), Holder(bytearray(BIG), 1, bytearray(b"small"), BIG), "x" * MIB, "\u20ac" * MIB, array.array("d", [1.5]) * 200_000, [bytearray(70_000 + i) for i in range(20)],
    list(range(200_000)), [BIG] * 3, [Holder(list(range(50_000))), BIG, "y" * 300_000],
]  # fmt: skip


@pytest.mark.parametrize("duplex", [False, True], ids=["simplex", "duplex"])
@pytest.mark.parametrize("obj", OBJECTS, ids=lambda obj: repr(obj)[:20])
def test_objects_arrive_as_in_the_original(obj, duplex):
    got, stock = through(obj, duplex), in_stock(obj)
    assert got == obj and type(got) is type(stock)


@pytest.mark.parametrize("obj", OBJECTS, ids=lambda obj: repr(obj)[:20])
def test_what_send_sends_can_be_loaded_by_anybody_and_what_anybody_pickles_can_be_received(obj):
    r, w = ringpipe.Pipe(False)
    message = exchange(r, w, lambda: w.send(obj), r.recv_bytes)
    assert pickle.loads(message) == obj
    assert exchange(r, w, lambda: w.send_bytes(message), r.recv) == obj
    for protocol in range(6):
        pickled = ForkingPickler.dumps(obj, protocol)
        assert exchange(r, w, lambda: w.send_bytes(pickled), r.recv) == obj


def test_parts_keep_their_types_and_identities():
    both = bytearray(BIG)
    got = through([BIG, both, both, Holder(both)])
    assert type(got[0]) is bytes and type(got[1]) is bytearray
    assert got[1] is got[2] is got[3].things[0]
    got[1][:3] = b"new"
    got[1].extend(b"more")
    assert len(got[1]) == MIB + 4


class TestArrays:
    @pytest.fixture(autouse=True)
    def numpy(self):
        return pytest.importorskip("numpy")

    @pytest.fixture
    def arrays(self, numpy):
        big = numpy.arange(200_000, dtype="f8")
        read_only = big.copy()
        read_only.flags.writeable = False
        structured = numpy.zeros(20_000, dtype=[("a", "i4"), ("b", "f8")])
        structured["b"] = numpy.arange(20_000)
        return {
            "big": big,
            "small": big[:10].copy(),
            "empty": numpy.zeros(0),
            "empty in two dimensions": numpy.zeros((0, 1000)),
            "scalar": numpy.array(1.5),
            "two dimensions": big.reshape(400, 500),
            "Fortran order": numpy.asfortranarray(big.reshape(400, 500)),
            "not contiguous": big[::2],
            "transposed slice": big.reshape(400, 500)[10:300, ::3].T,
            "read only": read_only,
            "read only and small": numpy.frombuffer(b"12345678", dtype="i4"),
            "of bytes": numpy.frombuffer(BIG, dtype="u1"),
            "big endian": big.astype(">f8"),
            "complex": big.astype("c16"),
            "bool": big > 1000,
            "objects": numpy.array([BIG, None, "x", big], dtype=object),
            "structured": structured,
            "text": numpy.array(["abc", "d"] * 30_000),
            "times": numpy.arange(20_000).astype("M8[s]"),
            "masked": numpy.ma.masked_array(big, big > 10),
            "record": structured.view(numpy.recarray),
        }

    def test_they_arrive_as_in_the_original(self, numpy, arrays):
        for name, sent in arrays.items():
            got, stock = through(sent), in_stock(sent)
            assert type(got) is type(stock), name
            assert got.dtype == stock.dtype and got.shape == stock.shape, name
            assert got.flags.writeable == stock.flags.writeable, name
            assert got.flags.c_contiguous == stock.flags.c_contiguous, name
            assert got.flags.f_contiguous == stock.flags.f_contiguous, name
            assert got.flags.aligned, name
            if sent.dtype == object:
                assert [str(item) for item in got] == [str(item) for item in stock], name
            else:
                assert got.tobytes() == stock.tobytes(), name

    def test_they_arrive_together_and_apart_from_each_other(self, numpy, arrays):
        sent = {name: arrays[name] for name in arrays if name not in ("objects", "masked")}
        got = through([sent, Holder(arrays["big"])])
        for name in sent:
            assert (got[0][name] == sent[name]).all(), name
        assert got[1].things[0] is got[0]["big"]
        got[0]["big"][:] = 0
        assert got[0]["complex"][1] == 1 and arrays["big"][1] == 1

    def test_thousands_arrive(self, numpy):
        sent = [numpy.full(8 << 10, number, dtype="u8") for number in range(1500)]
        got = through(sent)
        assert all((a == b).all() and a.flags.writeable for a, b in zip(sent, got)) and len(got) == 1500

    def test_a_reducer_that_was_registered_goes_before(self, numpy):
        big = numpy.zeros(100_000)
        ForkingPickler.register(numpy.ndarray, lambda array: (len, ([0] * 7,)))
        try:
            assert through([big]) == [7]
        finally:
            del ForkingPickler._extra_reducers[numpy.ndarray]
        copyreg.pickle(numpy.ndarray, lambda array: (len, ([0] * 8,)))
        try:
            assert through([big]) == [8]
        finally:
            del copyreg.dispatch_table[numpy.ndarray]
        assert through([big])[0].shape == (100_000,)

    def test_what_is_written_to_after_the_send_does_not_arrive_changed(self, numpy):
        r, w = ringpipe.Pipe(False)
        big = numpy.ones(5_000)  # 40 KB, which there is room for
        w.send(big)
        big[:] = 2
        assert (r.recv() == 1).all()

    def test_bytes_are_received_in_place(self, numpy):
        r, w = ringpipe.Pipe(False)
        for size in (10, 100_000, 1_000_000):
            sent, place = numpy.random.rand(size), numpy.zeros(size)
            assert exchange(r, w, lambda: w.send_bytes(sent), lambda: r.recv_bytes_into(place)) == 8 * size
            assert (sent == place).all()

    def test_memory_that_the_array_needs_is_all_that_is_touched(self, numpy, fork):
        # Were there another copy of the 256 MiB on either side, the limit would be passed.
        size = 32 << 20
        for receive in ("recv", "recv_bytes"):
            r, w = ringpipe.Pipe(False)

            def child():
                r.close()
                sent = numpy.ones(size)
                before = reset_peak()
                w.send(sent)
                assert peak() - before < 100 << 20

            fork(child)
            w.close()
            before = reset_peak()
            got = getattr(r, receive)()
            assert memoryview(got).nbytes >= 8 * size
            assert peak() - before < (256 + 100) << 20
            del got


def peak():
    """The most memory that this process has had since reset_peak(), in bytes."""
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) * 1024


def reset_peak():
    """The memory that this process has now, in bytes."""
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")
    return peak()


class Exporting:
    """Pickled by protocol 5 as what it has."""

    def __init__(self, buffer):
        self.buffer = buffer

    def __reduce_ex__(self, protocol):
        return rebuilt, (pickle.PickleBuffer(self.buffer),)


def rebuilt(buffer):
    return type(buffer), bytes(buffer)


@pytest.mark.parametrize("size", [10, 100_000])
def test_buffers_that_can_be_written_to_become_bytearrays_and_others_bytes(size):
    for kind in (bytes, bytearray):
        assert through(Exporting(kind(size))) == (kind, bytes(size))
    assert through(Exporting(memoryview(bytearray(size)).toreadonly())) == (bytes, bytes(size))


class Reducing:
    def __init__(self, call):
        self.call = call

    def __reduce__(self):
        return self.call()


def test_a_reducer_may_use_the_connection_it_is_sent_over():
    r, w = ringpipe.Pipe(False)

    def reduce():
        w.send("first")
        return (str, ("second",))

    w.send([Reducing(reduce), 1])
    assert [r.recv(), r.recv()] == ["first", ["second", 1]]

    def reduce_large():
        w.send([bytearray(MIB)])
        return (bytearray, (BIG,))

    def receive():
        return r.recv(), r.recv()

    assert exchange(r, w, lambda: w.send([BIG, Reducing(reduce_large)]), receive) == ([bytearray(MIB)], [BIG, bytearray(BIG)])


def test_a_reducer_may_close_the_connection():
    r, w = ringpipe.Pipe(False)
    with pytest.raises(OSError, match="handle is closed"):
        w.send([bytearray(MIB), Reducing(lambda: w.close() or (int, ()))])
    with pytest.raises(EOFError):
        r.recv()


def test_what_cannot_be_pickled_leaves_nothing_behind():
    r, w = ringpipe.Pipe(False)
    big = bytearray(MIB)
    for bad in (lambda: 0, Reducing(lambda: 1 / 0), Reducing(lambda: 7)):
        with pytest.raises(Exception):
            w.send([big, bad, big])
        assert not r.poll()
        big.append(0)  # nobody has its memory any more
    w.send("next")
    assert r.recv() == "next"


def test_a_bytearray_that_a_later_reducer_would_resize_is_kept_as_it_is():
    r, w = ringpipe.Pipe(False)
    big = bytearray(MIB)
    with pytest.raises(BufferError):
        w.send([big, Reducing(lambda: (len, (big.append(1),)))])
    assert not r.poll()


def test_an_object_whose_loading_fails_is_consumed():
    r, w = ringpipe.Pipe(False)

    def send():
        w.send([BIG, Reducing(lambda: (int, ("x",)))])
        w.send("next")

    def receive():
        with pytest.raises(ValueError):
            r.recv()
        return r.recv()

    assert exchange(r, w, send, receive) == "next"


def head(*entries, magic=b"\0ringpip"):
    index = magic + b"".join(struct.pack("<QQ", at, 2 * size + flag) for at, size, flag in entries)
    return b"\x80\x05B" + struct.pack("<I", len(index)) + index + b"0"


def outcome(function, *args):
    try:
        return function(*args)
    except Exception as e:
        return type(e), e.args


def forged():
    """Messages that start as those with an index do."""
    start = len(head((0, 0, 0)))
    big = bytes(100_000)
    body = b"\x96" + struct.pack("<Q", len(big)) + big + b"."
    at = start + 9
    yield head((at, len(big), 1)) + body
    for entry in [(at, len(big), 0), (at - 1, len(big), 1), (at + 1, len(big) - 1, 1), (at, 2**62, 1), (2**64 - 1, len(big), 1), (at, 0, 1), (0, len(big), 1)]:
        yield head(entry) + body
    yield head() + body
    yield head((at + 16, len(big), 1), (at + 16, len(big), 1)) + body
    yield head((at + 16, len(big), 1), (at + 16 + len(big) + 9, 1 << 40, 1)) + body
    yield head((at, len(big), 1), magic=b"something") + body
    yield head((at, len(big), 1)) + big
    yield head((at, len(big), 1))[:-5] + big + big
    yield head(*[(at, len(big), 1)] * 5000) + body
    # The header is right, and what follows is none of a pickle's.
    yield head((at, len(big), 1)) + body[:-1] + b"\xff" * 100
    # A second buffer of which the opcode is missing.
    yield head((at + 16, len(big), 1), (at + 16 + len(big) + 20, len(big), 0)) + body[:-1] + b"0" * 20 + big + b"."
    # In a frame.
    yield head((at + 9, len(big), 1)) + b"\x95" + struct.pack("<Q", len(body)) + body


@pytest.mark.parametrize("message", list(forged()), ids=lambda message: str(len(message)))
def test_an_index_that_lies_changes_nothing(message):
    r, w = ringpipe.Pipe(False)
    got = exchange(r, w, lambda: w.send_bytes(message), lambda: outcome(r.recv))
    stock = outcome(pickle.loads, message)
    assert got == stock or (isinstance(stock, bytearray) and got[0] is pickle.UnpicklingError)
    w.send(1)
    assert r.recv() == 1


def test_arbitrary_bytes_raise_what_the_unpickler_raises():
    r, w = ringpipe.Pipe(False)
    source = random.Random(1)
    good = exchange(r, w, lambda: w.send([BIG[:70_000], bytearray(80_000), "x"]), r.recv_bytes)
    messages = [source.randbytes(source.choice([1, 100, 70_000])) for _ in range(50)]
    for _ in range(200):
        bad = bytearray(good)
        # Mostly in the index, the opcodes, and the end.
        for _ in range(source.randrange(1, 4)):
            place = source.choice([range(100), range(70_000, 70_120), range(len(bad) - 30, len(bad)), range(len(bad))])
            bad[source.choice(place)] = source.randrange(256)
        messages.append(bytes(bad))
    for message in messages:
        got = exchange(r, w, lambda: w.send_bytes(message), lambda: outcome(r.recv))
        stock = outcome(pickle.loads, message)
        # Errors differ by where the unpickler notices: types of them do not matter, but that it is one.
        assert got == stock or isinstance(stock, tuple), message[:100]
    w.send(1)
    assert r.recv() == 1


def test_poll_says_one_message(fork):
    r, w = ringpipe.Pipe(False)

    def child():
        r.close()
        w.send([BIG, bytearray(BIG)])

    fork(child)
    w.close()
    assert r.poll(30)
    assert r.recv() == [BIG, bytearray(BIG)]
    assert r.poll(30)
    with pytest.raises(EOFError):
        r.recv()


def test_a_sender_that_is_killed_inside_a_message_is_an_end_of_file_inside_it(fork):
    r, w = ringpipe.Pipe(False)
    pid = os.fork()
    if pid == 0:
        w.send([bytearray(64 * MIB)])
        os._exit(0)
    w.close()
    assert r.poll(30)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with pytest.raises(OSError, match="got end of file during message"):
        r.recv()
    with pytest.raises(EOFError):
        r.recv()


def test_a_receive_that_a_signal_handler_ends_inside_a_message_can_be_made_again(handler, fork):
    class Stop(Exception):
        pass

    def stop():
        raise Stop

    r, w = ringpipe.Pipe(False)
    later = handler(stop)
    sent = [BIG, bytearray(BIG) * 3]
    pid = fork(lambda: w.send(sent) or w.send(sent))
    for again in (r.recv, lambda: pickle.loads(r.recv_bytes())):
        until(r.poll)
        os.kill(pid, signal.SIGSTOP)
        later(0.3)
        with pytest.raises(Stop):
            r.recv()
        os.kill(pid, signal.SIGCONT)
        assert again() == sent


def test_a_signal_handler_may_receive_the_message_that_a_receive_is_inside(handler, fork):
    r, w = ringpipe.Pipe(False)
    got = []
    pids = []

    def receive():
        os.kill(pids[0], signal.SIGCONT)
        got.append(r.recv())

    later = handler(receive)

    def child():
        w.send([BIG, 1])
        w.send([bytearray(BIG), 2])

    pids.append(fork(child))
    until(r.poll)
    os.kill(pids[0], signal.SIGSTOP)
    later(0.3)
    second = r.recv()
    assert got == [[BIG, 1]] and second == [bytearray(BIG), 2]


def test_threads_that_receive_get_each_message_whole(thread, fork):
    r, w = ringpipe.Pipe(False)
    count = 60
    got = []

    def child():
        r.close()
        for number in range(count):
            w.send([number, bytearray([number]) * (number * 20_000)])

    fork(child)
    w.close()

    def receive():
        while True:
            try:
                got.append(r.recv())
            except EOFError:
                return

    for started in [thread(receive) for _ in range(4)]:
        started.join(60)
    assert sorted(number for number, _ in got) == list(range(count))
    assert all(data == bytearray([number]) * (number * 20_000) for number, data in got)


def test_a_fork_while_a_thread_is_inside_a_message(thread, fork):
    r, w = ringpipe.Pipe(False)
    other_r, other_w = ringpipe.Pipe(False)
    sender = thread(w.send, [bytearray(8 * MIB)])
    receiver = thread(lambda: other_w.send(len(r.recv()[0])))
    for _ in range(5):
        fork(lambda: gc.collect())
    assert other_r.recv() == 8 * MIB
    sender.join()
    receiver.join()


def test_a_message_taken_back_while_it_is_received_gives_way_to_the_next(handler):
    class Stop(Exception):
        pass

    def stop():
        raise Stop

    r, w = ringpipe.Pipe(False)
    result, results = ringpipe.Pipe(False)
    pid = os.fork()
    if pid == 0:
        w.close()
        time.sleep(0.1)
        # The first part has been sent. Stopped and let go, this side takes what there is, and goes on with what comes next.
        results.send(r.recv())
        os._exit(0)
    os.kill(pid, signal.SIGSTOP)
    later = handler(stop)
    later(0.3)
    with pytest.raises(Stop):
        w.send([bytearray(64 * MIB)])
    os.kill(pid, signal.SIGCONT)
    w.send([bytearray(b"next") * 50_000])
    assert result.recv() == [bytearray(b"next") * 50_000]
    assert os.waitpid(pid, 0)[1] == 0


def test_items_are_received_in_place():
    r, w = ringpipe.Pipe(False)
    for count in (3, 100_000):
        sent = array.array("i", range(count))
        place = array.array("i", bytes(4 * count))
        assert exchange(r, w, lambda: w.send_bytes(sent), lambda: r.recv_bytes_into(place)) == 4 * count
        assert place == sent
        # Of the last item not all has been sent: it is not written to.
        place = array.array("i", [-1] * (count + 1))
        odd = bytes(sent) + b"\1\1"
        assert exchange(r, w, lambda: w.send_bytes(odd), lambda: r.recv_bytes_into(place)) == len(odd)
        assert place[:-1] == sent and place[-1] == -1
        place = array.array("i", [-1] * count)
        with pytest.raises(BufferTooShort) as raised:
            exchange(r, w, lambda: w.send_bytes(odd), lambda: r.recv_bytes_into(place))
        assert raised.value.args == (odd,)
        assert place.tolist() == [-1] * count


def test_a_claim_of_more_than_there_is_memory_for_harms_nobody():
    r, w = ringpipe.Pipe(False)
    message = head((1 << 20, 1 << 50, 1)) + bytes(200_000) + b"."
    assert isinstance(exchange(r, w, lambda: w.send_bytes(message), lambda: outcome(r.recv)), tuple)
    w.send(1)
    assert r.recv() == 1
