"""Processes that are killed at random moments while they send, receive, put or get under load: whatever the others have got of them is whole, in order and complete, and nobody hangs.

RINGPIPE_KILLS is the number of kills of each test, if it is set: the long form takes RINGPIPE_KILLS=5000 and an hour.
"""

import faulthandler
import itertools
import mmap
import os
import queue
import random
import signal
import sys
import threading
import time

import pytest

import ringpipe

KILLS = int(os.environ.get("RINGPIPE_KILLS", 0))

# What is sent, by its number, and how many kills there are if nobody says.
MESSAGES = {
    "short": (lambda n: n.to_bytes(8, "little") * (n % 40 + 1), 120),
    "objects": (lambda n: (n, "x" * (n % 300), [n] * 5), 80),
    "long": (lambda n: n.to_bytes(8, "little") * (60_000 + n % 40_000), 50),  # rings have 256 KiB
}


class Victim:
    """A child that makes one call after the other, and tells how many it has begun and finished in memory that outlives it."""

    def __init__(self, close, step, afterwards=int):
        self.words = memoryview(mmap.mmap(-1, 32)).cast("q")
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                signal.alarm(60)
                close()
                words = self.words
                for n in itertools.count():
                    words[0] = n + 1
                    step(n)
                    words[1] = n + 1
            finally:
                words[2] = 1
                os._exit(status)
        self.killer = threading.Thread(target=self.kill, args=(afterwards,))

    def kill(self, afterwards):
        # While it makes calls, and not before.
        while self.words[1] < 3 and not self.words[2]:
            time.sleep(0.0005)
        time.sleep(random.choice([0.0005, 0.005, 0.02]) * random.random())
        os.kill(self.pid, signal.SIGKILL)
        afterwards()

    def gone(self):
        """Waits for its death, which has to be ours. Returns how many calls it had finished."""
        self.killer.join(60)
        assert not self.killer.is_alive()
        _pid, status = os.waitpid(self.pid, 0)
        assert not self.words[2], "the child has failed by itself"
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        return self.words[1]

    @property
    def was_inside(self):
        return self.words[0] > self.words[1]


class Tally:
    """Counts what the kills have hit. Each has the time that conftest.py gives a whole test."""

    def __init__(self, default):
        self.kills = KILLS or default
        self.inside = self.arrived = self.of_those = 0

    def __iter__(self):
        for number in range(self.kills):
            faulthandler.dump_traceback_later(120, exit=True, file=sys.__stderr__)
            yield number

    def count(self, victim, arrived, whole_after_all=False):
        self.inside += victim.was_inside
        self.of_those += whole_after_all
        self.arrived += arrived

    def report(self, capsys, call):
        with capsys.disabled():
            print(f"\n    {self.kills} kills, {self.inside} of them inside {call}, {self.of_those} of whose messages had arrived all the same; {self.arrived} messages")
        assert self.inside >= self.kills // 20
        assert self.arrived >= self.kills


def soon(start):
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("kind", MESSAGES)
def test_senders_that_are_killed(kind, capsys):
    message, kills = MESSAGES[kind]
    tally = Tally(kills)
    cut = 0
    for number in tally:
        r, w = ringpipe.Pipe(number % 2 == 0)
        send, recv = (w.send, r.recv) if kind == "objects" else (w.send_bytes, r.recv_bytes)
        victim = Victim(r.close, lambda n: send(message(n)))
        w.close()
        victim.killer.start()
        got = 0
        with pytest.raises((EOFError, OSError)) as end:
            while True:
                assert recv() == message(got)
                got += 1
        if end.type is OSError:
            assert kind == "long"
            assert str(end.value) == "got end of file during message"
            cut += 1
        else:
            assert end.type is EOFError
        start = time.monotonic()
        finished = victim.gone()
        # It has ended because of the death, and what a call had finished to send is there.
        assert finished <= got <= finished + victim.was_inside
        with pytest.raises(EOFError):
            recv()
        assert r.poll()
        soon(start)
        tally.count(victim, got, got > finished)
        r.close()
    tally.report(capsys, f"a send, {cut} of them in a message that had begun to arrive")


@pytest.mark.parametrize("kind", MESSAGES)
def test_receivers_that_are_killed(kind, capsys):
    message, kills = MESSAGES[kind]
    tally = Tally(kills)
    for number in tally:
        r, w = ringpipe.Pipe(number % 2 == 0)
        send, recv = (w.send, r.recv) if kind == "objects" else (w.send_bytes, r.recv_bytes)

        def step(n):
            assert recv() == message(n)

        victim = Victim(w.close, step)
        r.close()
        victim.killer.start()
        sent = 0
        with pytest.raises(BrokenPipeError):
            while True:
                send(message(sent))
                sent += 1
        start = time.monotonic()
        finished = victim.gone()
        # The call that has failed may have brought it all.
        assert finished <= sent + 1
        with pytest.raises(BrokenPipeError):
            send(message(0))
        soon(start)
        tally.count(victim, finished)
        w.close()
    tally.report(capsys, "a recv")


@pytest.mark.parametrize("kind", MESSAGES)
@pytest.mark.parametrize("make", [ringpipe.Queue, ringpipe.JoinableQueue, ringpipe.SimpleQueue])
def test_producers_that_are_killed(make, kind, capsys):
    """One after the other, of one queue, while another thread of the consumer's process puts, too."""
    message, kills = MESSAGES[kind]
    tally = Tally(kills // 3)
    q = make(capacity=1 << 18)
    for number in tally:
        victim = Victim(int, lambda n: q.put((number, n, message(n))), afterwards=lambda: q.put(None))
        victim.killer.start()
        got = 0
        while (item := q.get()) is not None:
            whose, n, content = item
            assert (whose, n) == (number, got)
            assert content == message(n)
            got += 1
        finished = victim.gone()
        assert finished <= got <= finished + victim.was_inside
        assert q.empty()
        tally.count(victim, got, got > finished)
    tally.report(capsys, "a put")


@pytest.mark.parametrize("kind", MESSAGES)
@pytest.mark.parametrize("make", [ringpipe.Queue, ringpipe.JoinableQueue, ringpipe.SimpleQueue])
def test_consumers_that_are_killed(make, kind, capsys):
    """One after the other, of one queue; what each has not taken, another gets."""
    message, kills = MESSAGES[kind]
    tally = Tally(kills // 3)
    q = make(capacity=1 << 18)
    lost = 0
    for _ in tally:
        last = -1

        def step(_n):
            nonlocal last
            n, content = q.get()
            assert n > last
            assert content == message(n)
            last = n

        victim = Victim(int, step)
        victim.killer.start()
        done = threading.Event()
        put, left = itertools.count(), []

        def produce():
            while victim.killer.is_alive():
                n = next(put)
                q.put((n, message(n)))
            done.set()

        producer = threading.Thread(target=produce)
        producer.start()
        victim.killer.join(60)
        # Who lives takes the rest, and makes room for the producer.
        while not (done.is_set() and q.empty()):
            if not q.empty():
                n, content = q.get()
                assert content == message(n)
                left.append(n)
        producer.join()
        finished = victim.gone()
        total = next(put)
        assert left == sorted(set(left))
        assert total - finished - len(left) in ((0, 1) if victim.was_inside else (0,))
        lost += total - finished - len(left)
        tally.count(victim, finished)
    with capsys.disabled():
        print(f"\n    {lost} messages went with who had taken them")
    tally.report(capsys, "a get")
    assert q.empty()
    q.put("still in use")
    assert q.get() == "still in use"


def test_a_killed_consumer_leaves_a_limited_queue_usable():
    """With one place less for each that was killed at the wrong moment."""
    places = 1000
    q = ringpipe.Queue(places)
    for _ in range(20):
        victim = Victim(int, lambda n: q.get())
        victim.killer.start()
        while victim.killer.is_alive():
            try:
                q.put(1, timeout=0.01)
            except queue.Full:
                pass
        victim.gone()
        while not q.empty():
            q.get()
    room = 0
    with pytest.raises(queue.Full):
        while True:
            q.put_nowait(1)
            room += 1
    assert places - 20 <= room <= places
