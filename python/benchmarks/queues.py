"""How much faster than multiprocessing.Queue, multiprocessing.SimpleQueue and faster-fifo is ringpipe.Queue?

    pip install faster-fifo Cython
    python benchmarks/queues.py [--rounds N] [--short]

Producers put the same object time and again, with put(); consumers get, each its share. All are forked processes, which start together; it ends when the last consumer
has its share. The queues take turns in short rounds. One producer and one consumer are kept on two processors where there are as many. Figures are medians
of the rounds, and so is how many times as fast ringpipe is, of which the least and the greatest of a round are given as well. faster-fifo is measured twice, with get() and with get_many(),
at most 1000 at a time.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import time

import ringpipe

try:
    import faster_fifo
    import faster_fifo_reduction  # noqa: F401
except ImportError as e:
    faster_fifo = None
    print(f"!!! SKIPPED: faster-fifo: {e}\n")

CPUS = sorted(os.sched_getaffinity(0))
RING = 1 << 20


def one_by_one(q, count):
    get = q.get
    for _ in range(count):
        get()


def many_at_once(q, count):
    get = q.get_many
    while count:
        count -= len(get(max_messages_to_get=min(count, 1000)))


# What makes a queue, how it is emptied, and how many times as many messages as through the slowest it gets in a round.
QUEUES = {
    "multiprocessing.Queue": (multiprocessing.Queue, one_by_one, 1),
    "multiprocessing.SimpleQueue": (multiprocessing.SimpleQueue, one_by_one, 1),
    "ringpipe.Queue": (ringpipe.Queue, one_by_one, 10),
}
if faster_fifo:
    QUEUES["faster-fifo"] = (lambda: faster_fifo.Queue(max_size_bytes=RING), one_by_one, 5)
    QUEUES["faster-fifo, get_many"] = (lambda: faster_fifo.Queue(max_size_bytes=RING), many_at_once, 5)
OURS = "ringpipe.Queue"

# Producers, and as many consumers; the name of the object; the object; messages a round through the slowest.
SCENES = [
    (1, "ints", 12345, 20_000),
    (1, "64 bytes", bytes(64), 20_000),
    (1, "(1, 'job', 2.5)", (1, "job", 2.5), 20_000),
    (4, "ints", 12345, 16_000),
    (4, "64 bytes", bytes(64), 16_000),
    (4, "(1, 'job', 2.5)", (1, "job", 2.5), 16_000),
]


def in_child(cpu, gate, body):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if cpu is not None and len(CPUS) > 1:
                os.sched_setaffinity(0, {CPUS[cpu]})
            os.read(gate, 1)
            body()
            status = 0
        finally:
            os._exit(status)
    return pid


def measure(make, empty, sides, obj, count):
    """Seconds that count messages take."""
    q = make()
    gate, opener = os.pipe()

    def produce():
        os.close(opener)
        put = q.put
        for _ in range(count // sides):
            put(obj)
        if isinstance(q, multiprocessing.queues.Queue):
            q.close()
            q.join_thread()

    def consume():
        os.close(opener)
        empty(q, count // sides)

    pinned = sides == 1
    producers = [in_child(0 if pinned else None, gate, produce) for _ in range(sides)]
    consumers = [in_child(1 if pinned else None, gate, consume) for _ in range(sides)]
    start = time.perf_counter()
    os.write(opener, bytes(2 * sides))
    for pid in consumers:
        assert os.waitpid(pid, 0)[1] == 0
    seconds = time.perf_counter() - start
    for pid in producers:
        assert os.waitpid(pid, 0)[1] == 0
    os.close(gate)
    os.close(opener)
    if hasattr(q, "close"):
        q.close()
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--short", action="store_true", help="only to see that all of it works")
    args = parser.parse_args()
    rounds = 1 if args.short else args.rounds
    print(f"Python {sys.version.split()[0]}, {len(CPUS)} processors, {rounds} rounds\n")
    others = [queue for queue in QUEUES if queue != OURS]
    print(f"| what | {OURS} | " + " | ".join(others) + " |")
    print("| --- " * (2 + len(others)) + "|")
    for sides, name, obj, count in SCENES:
        if args.short:
            count = count // 50
        times = {queue: [] for queue in QUEUES}
        for _ in range(rounds):
            for queue, (make, empty, more) in QUEUES.items():
                times[queue].append(measure(make, empty, sides, obj, count * more) / (count * more))

        def rate(queue):
            return f"{1e-6 / statistics.median(times[queue]):.3g} M/s"

        def compared(queue):
            ratios = [other / ours for other, ours in zip(times[queue], times[OURS])]
            return f"{rate(queue)}: {statistics.median(ratios):.1f}x ({min(ratios):.1f}-{max(ratios):.1f})"

        print(f"| {sides} to {sides}, {name} | {rate(OURS)} | " + " | ".join(map(compared, others)) + " |", flush=True)


if __name__ == "__main__":
    main()
