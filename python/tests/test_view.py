"""Messages that are looked at where they lie."""

import gc
import os
import signal
import sys
import time
from multiprocessing.connection import wait

import pytest
from conftest import until

import ringpipe

# In one piece in the ring, and not.
SIZES = pytest.mark.parametrize("size", [0, 1, 50_000, 1_000_000])
SOME = pytest.mark.parametrize("size", [100, 1_000_000], ids=["short", "long"])


@pytest.fixture
def pipe():
    return ringpipe.Pipe(False)


def content(size, start=0):
    return bytes((start + i) % 251 for i in range(size))


def sent(w, thread, *messages):
    thread(lambda: [w.send_bytes(message) for message in messages])


@SIZES
def test_a_view_has_the_message_and_consumes_it_at_the_end(pipe, thread, size):
    r, w = pipe
    sent(w, thread, content(size), b"next")
    with r.recv_view() as view:
        assert type(view) is memoryview and view.readonly and view.format == "B" and view.ndim == 1
        assert len(view) == size and view == content(size)
        assert view[:10] == content(size)[:10]
        with pytest.raises(TypeError):
            view[:1] = b"x"
    with pytest.raises(ValueError, match="released"):
        bytes(view)
    assert r.recv_bytes() == b"next"


@SOME
def test_many_views_one_after_the_other(pipe, thread, size):
    r, w = pipe
    messages = [content(size + i, i) for i in range(30)]
    sent(w, thread, *messages)
    for message in messages:
        with r.recv_view() as view:
            assert view == message
    assert not r.poll()


@SOME
def test_memory_that_is_still_used_at_the_end_is_a_buffer_error_and_stays(pipe, thread, size):
    r, w = pipe
    sent(w, thread, content(size), b"next")
    with pytest.raises(BufferError, match="still in use"):
        with r.recv_view() as view:
            part = view[10:20]
    assert part == content(size)[10:20]
    del view
    gc.collect()
    assert part == content(size)[10:20]
    part.release()
    assert r.recv_bytes() == b"next"


@SOME
def test_so_it_is_with_arrays(pipe, thread, size):
    numpy = pytest.importorskip("numpy")
    r, w = pipe
    sent(w, thread, content(size), b"next")
    with pytest.raises(BufferError, match="still in use"):
        with r.recv_view() as view:
            kept = numpy.frombuffer(view, dtype="u1")
    del view
    assert kept.tobytes() == content(size) and not kept.flags.writeable
    del kept
    assert r.recv_bytes() == b"next"
    sent(w, thread, content(size))
    with r.recv_view() as view:
        array = numpy.frombuffer(view, dtype="u1")
        total = int(array.sum())
        del array
    assert total == sum(content(size))


@SOME
def test_an_exception_in_the_block_is_not_hidden_by_what_still_uses_the_memory(pipe, thread, size):
    r, w = pipe
    sent(w, thread, content(size), content(size), b"next")
    with pytest.raises(ZeroDivisionError):
        with r.recv_view():
            1 / 0
    with pytest.raises(ZeroDivisionError):
        with r.recv_view() as view:
            part = view[1:]
            1 / 0
    assert part == content(size)[1:]
    part.release()
    assert r.recv_bytes() == b"next"


def test_a_released_view_can_be_left(pipe):
    r, w = pipe
    w.send_bytes(b"abc")
    with r.recv_view() as view:
        view.release()
        assert r.closed is False
    with pytest.raises(RuntimeError, match="not open"):
        r.recv_view().__exit__(None, None, None)


def test_a_context_can_be_entered_again_but_not_while_it_is_open(pipe):
    r, w = pipe
    w.send_bytes(b"1")
    w.send_bytes(b"2")
    context = r.recv_view()
    with context as view:
        assert view == b"1"
        with pytest.raises(RuntimeError, match="is open"):
            context.__enter__()
    with context as view:
        assert view == b"2"


def test_the_same_thread_cannot_receive_in_the_block(pipe):
    r, w = pipe
    w.send_bytes(b"1")
    w.send_bytes(b"2")
    with r.recv_view() as view:
        for call in (r.recv, r.recv_bytes, r.poll, lambda: r.recv_bytes(5), lambda: r.recv_bytes_into(bytearray(9)), r.recv_view().__enter__):
            with pytest.raises(RuntimeError, match="a view of a message"):
                call()
        assert view == b"1"
    assert r.recv_bytes() == b"2"


def test_it_can_send_in_the_block():
    a, b = ringpipe.Pipe()
    b.send_bytes(b"question")
    with a.recv_view() as view:
        a.send_bytes(view)
        a.send([bytes(view)])
    assert [b.recv_bytes(), b.recv()] == [b"question", [b"question"]]


def test_other_threads_wait_until_the_end(pipe, thread):
    r, w = pipe
    w.send_bytes(b"1")
    w.send_bytes(b"2")
    got = []
    with r.recv_view() as view:
        started = thread(lambda: got.append(r.recv_bytes()))
        time.sleep(0.1)
        polled = []
        thread(lambda: polled.append(r.poll(0.05))).join()
        assert not got and polled == [False] and view == b"1"
    started.join(30)
    assert got == [b"2"]


def test_several_threads_share_what_comes(pipe, thread):
    r, w = pipe
    got = []

    def receive():
        while True:
            try:
                with r.recv_view() as view:
                    got.append(bytes(view))
            except EOFError:
                return

    threads = [thread(receive) for _ in range(3)]
    messages = [content(100 if number % 10 else 100_000, number) for number in range(300)]
    for message in messages:
        w.send_bytes(message)
    w.close()
    for started in threads:
        started.join(60)
    assert sorted(got) == sorted(messages)


def test_the_connection_may_be_closed_in_the_block(pipe, thread):
    r, w = pipe
    w.send_bytes(b"abc")
    with r.recv_view() as view:
        r.close()
        assert view == b"abc"
        w.send_bytes(b"there is still a reader")
    with pytest.raises(BrokenPipeError):
        w.send_bytes(b"x")
    with pytest.raises(OSError, match="handle is closed"):
        r.recv_view()


def test_the_message_outlives_the_connection(pipe):
    r, w = pipe
    w.send_bytes(content(1000))
    view = r.recv_view().__enter__()
    del r
    w.close()
    gc.collect()
    assert view == content(1000)


def test_a_view_that_is_never_left_consumes_its_message_when_it_goes_away(pipe):
    r, w = pipe
    w.send_bytes(b"1")
    w.send_bytes(b"2")
    context = r.recv_view()
    view = context.__enter__()
    assert view == b"1"
    del context, view
    assert r.recv_bytes() == b"2"


def test_errors_are_those_of_a_receive(pipe):
    r, w = pipe
    with pytest.raises(OSError, match="connection is write-only"):
        w.recv_view()
    w.close()
    with pytest.raises(EOFError):
        with r.recv_view():
            pass


def test_it_waits_and_signals_come_through(pipe, handler):
    class Stop(Exception):
        pass

    def stop():
        raise Stop

    r, w = pipe
    handler(stop)(0.2)
    with pytest.raises(Stop):
        with r.recv_view():
            pass
    w.send_bytes(b"abc")
    with r.recv_view() as view:
        assert view == b"abc"


def test_a_handler_that_receives_in_the_block_is_told(pipe, handler):
    r, w = pipe
    raised = []

    def receive():
        try:
            r.recv_bytes()
        except RuntimeError as e:
            raised.append(e)

    later = handler(receive)
    w.send_bytes(b"1")
    with r.recv_view() as view:
        later(0)
        until(lambda: raised)
        assert view == b"1"


def test_the_sender_gets_the_room_at_the_end(pipe, thread):
    r, w = pipe
    message, count = content(50_000), 5
    for _ in range(count):
        w.send_bytes(message)
    sender = thread(w.send_bytes, message)
    with r.recv_view() as view:
        sender.join(0.2)
        assert view == message
    for _ in range(count):
        assert r.recv_bytes() == message
    sender.join(30)


def test_the_descriptor_is_right_after_the_end(pipe):
    r, w = pipe
    w.send_bytes(b"1")
    assert wait([r], 0) == [r]
    with r.recv_view():
        pass
    until(lambda: wait([r], 0) == [])
    with_first_look_in_the_block, other = ringpipe.Pipe(False)
    other.send_bytes(b"1")
    with with_first_look_in_the_block.recv_view():
        assert isinstance(with_first_look_in_the_block.fileno(), int)
    assert wait([with_first_look_in_the_block], 0) == []
    other.send_bytes(b"2")
    assert wait([with_first_look_in_the_block], 30) == [with_first_look_in_the_block]


def test_a_forked_child_that_leaves_the_block_consumes_nothing(pipe, fork):
    r, w = pipe
    w.send_bytes(b"1")
    w.send_bytes(b"2")
    context = r.recv_view()
    with context as view:

        def child():
            assert view == b"1"
            context.__exit__(None, None, None)

        os.waitpid(fork(child), 0)
        assert view == b"1" and not w.closed
    assert r.recv_bytes() == b"2"


def test_the_exporter_cannot_be_made_or_used_up(pipe):
    r, w = pipe
    w.send_bytes(b"abc")
    context = r.recv_view()
    view = context.__enter__()
    exporter = view.obj
    context.__exit__(None, None, None)
    with pytest.raises(BufferError, match="consumed"):
        memoryview(exporter)
    with pytest.raises(BufferError, match="consumed"):
        memoryview(object.__new__(type(exporter)))
    references = sys.getrefcount(type(exporter))
    for _ in range(100):
        object.__new__(type(exporter))
    assert sys.getrefcount(type(exporter)) <= references + 1


def test_a_killed_sender_leaves_what_it_had_sent(pipe):
    r, w = pipe
    pid = os.fork()
    if pid == 0:
        w.send_bytes(b"abc")
        signal.pause()
    w.close()
    with r.recv_view() as view:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert view == b"abc"
    with pytest.raises(EOFError):
        with r.recv_view():
            pass


def test_a_view_is_no_thread_s_own(pipe, thread):
    r, w = pipe
    w.send_bytes(b"1")
    w.send_bytes(b"2")
    context = r.recv_view()
    context.__enter__()
    thread(context.__exit__, None, None, None).join()
    assert r.recv_bytes() == b"2"
