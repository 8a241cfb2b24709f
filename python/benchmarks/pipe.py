"""How much faster than multiprocessing.Pipe is ringpipe.Pipe, between two processes?

    python benchmarks/pipe.py [--rounds N] [--short]

Both take turns in short rounds, each with a child of its own; the two processes are kept on two processors where there are as many. Figures are medians of the rounds, and so are
the ratios, of which the least and the greatest of a round are given as well.
"""

import argparse
import importlib.util
import multiprocessing
import os
import pickle
import statistics
import sys
import time
import timeit
from multiprocessing.reduction import ForkingPickler

import ringpipe

PIPES = {"multiprocessing": multiprocessing.Pipe, "ringpipe": ringpipe.Pipe}
CPUS = sorted(os.sched_getaffinity(0))


def in_child(body):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if len(CPUS) > 1:
                os.sched_setaffinity(0, {CPUS[1]})
            body()
            status = 0
        finally:
            os._exit(status)
    return pid


def stream(Pipe, count, send, receive):
    """Seconds that count messages take one way, from the first that is received to the last."""
    r, w = Pipe(False)

    def child():
        r.close()
        put = send(w)
        for _ in range(count + 1):
            put()

    pid = in_child(child)
    w.close()
    get = receive(r)
    get()
    start = time.perf_counter()
    for _ in range(count):
        get()
    seconds = time.perf_counter() - start
    r.close()
    assert os.waitpid(pid, 0)[1] == 0
    return seconds


def sends(message):
    def send(w):
        put = w.send_bytes
        return lambda: put(message)

    return send


def one_way(message):
    return lambda Pipe, count: stream(Pipe, count, sends(message), lambda r: r.recv_bytes)


def one_way_in_place(message):
    def receive(r):
        get, place = r.recv_bytes_into, bytearray(len(message))
        return lambda: get(place)

    return lambda Pipe, count: stream(Pipe, count, sends(message), receive)


def objects(obj):
    def send(w):
        put = w.send
        return lambda: put(obj)

    return lambda Pipe, count: stream(Pipe, count, send, lambda r: r.recv)


def round_trip(message):
    def measure(Pipe, count):
        a, b = Pipe()

        def child():
            a.close()
            get, put = b.recv_bytes, b.send_bytes
            for _ in range(count + 1):
                put(get())

        pid = in_child(child)
        b.close()
        get, put = a.recv_bytes, a.send_bytes
        put(message)
        get()
        start = time.perf_counter()
        for _ in range(count):
            put(message)
            get()
        seconds = time.perf_counter() - start
        a.close()
        assert os.waitpid(pid, 0)[1] == 0
        return seconds

    return measure


def array(size):
    import numpy

    return numpy.arange(size // 8, dtype="f8")


def arrays(size):
    return lambda Pipe, count: objects(array(size))(Pipe, count)


def into_array(size):
    def receive(r):
        get, place = r.recv_bytes_into, array(size)
        return lambda: get(place)

    return lambda Pipe, count: stream(Pipe, count, sends(array(size)), receive)


TUPLE, NUMBERS = (1, "job", 2.5), list(range(100))
KIB, MIB = 1 << 10, 1 << 20
# What is measured, messages a round through the original (and as many times more through ringpipe), and the unit, or bytes of a message for GB/s.
SCENES = [
    ("64 B one way, send_bytes, recv_bytes", one_way(bytes(64)), 20_000, 10, "M/s"),
    ("64 B there and back, send_bytes, recv_bytes", round_trip(bytes(64)), 1_500, 20, "us"),
    ("(1, 'job', 2.5) one way, send, recv", objects(TUPLE), 15_000, 3, "M/s"),
    ("list of 100 numbers one way, send, recv", objects(NUMBERS), 8_000, 2, "M/s"),
    ("4 KiB one way, send_bytes, recv_bytes", one_way(bytes(4 << 10)), 10_000, 5, "M/s"),
    ("1 MiB one way, send_bytes, recv_bytes", one_way(bytes(MIB)), 100, 4, MIB),
    ("1 MiB one way, send_bytes, recv_bytes_into", one_way_in_place(bytes(MIB)), 100, 4, MIB),
    ("1 MiB bytes one way, send, recv", objects(bytes(MIB)), 100, 4, MIB),
    ("100 KiB NumPy array one way, send, recv", arrays(100 * KIB), 500, 4, 100 * KIB),
    ("1 MiB NumPy array one way, send, recv", arrays(MIB), 100, 4, MIB),
    ("1 MiB NumPy array one way, send_bytes, recv_bytes_into", into_array(MIB), 100, 4, MIB),
    ("64 MiB NumPy array one way, send, recv", arrays(64 * MIB), 3, 3, 64 * MIB),
    ("64 MiB NumPy array one way, send_bytes, recv_bytes_into", into_array(64 * MIB), 3, 3, 64 * MIB),
    ("256 MiB one way, send_bytes, recv_bytes", one_way(bytes(256 * MIB)), 1, 1, 256 * MIB),
]  # fmt: skip


def pickling(obj, count):
    """Says how long it takes to make an object's pickle, as each of the two does it, and to read it."""
    pickle_of_it = pickle.dumps(obj)
    steps = {
        "ForkingPickler.dumps": lambda: ForkingPickler.dumps(obj),
        "pickle.dumps": lambda: pickle.dumps(obj),
        "pickle.loads": lambda: pickle.loads(pickle_of_it),
    }
    return ", ".join(f"{name} {1e6 * min(timeit.repeat(step, number=count, repeat=5)) / count:.2f} us" for name, step in steps.items())


def show(seconds, unit):
    return {"M/s": 1e-6 / seconds, "us": 1e6 * seconds}.get(unit) or unit / seconds / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--short", action="store_true", help="only to see that all of it works")
    args = parser.parse_args()
    rounds = 1 if args.short else args.rounds
    if len(CPUS) > 1:
        os.sched_setaffinity(0, {CPUS[0]})
    print(f"Python {sys.version.split()[0]}, {len(CPUS)} processors, {rounds} rounds\n")
    print("| what | multiprocessing | ringpipe | ratio | range |")
    print("| --- | --- | --- | --- | --- |")
    for name, measure, count, more, unit in SCENES:
        if "NumPy" in name and importlib.util.find_spec("numpy") is None:
            print(f"| {name} | NumPy is not installed |")
            continue
        if args.short:
            count = min(count, max(count // 50, 5))
        times = {pipe: [] for pipe in PIPES}
        for _ in range(rounds):
            for pipe, Pipe in PIPES.items():
                messages = count * more if pipe == "ringpipe" else count
                times[pipe].append(measure(Pipe, messages) / messages)
        ratios = [before / now for before, now in zip(times["multiprocessing"], times["ringpipe"])]
        before, now = (show(statistics.median(times[pipe]), unit) for pipe in PIPES)
        ratio = statistics.median(ratios)
        unit = unit if isinstance(unit, str) else "GB/s"
        print(f"| {name} | {before:.3g} {unit} | {now:.3g} {unit} | {ratio:.1f}x | {min(ratios):.1f}-{max(ratios):.1f} |", flush=True)
    count = 100 if args.short else 20_000
    print(f"\nPickling alone, of {TUPLE}: {pickling(TUPLE, count)}; of a list of 100 numbers: {pickling(NUMBERS, count)}")


if __name__ == "__main__":
    main()
