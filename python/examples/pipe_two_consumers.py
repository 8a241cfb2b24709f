"""A producer deals numbers out to two consumers, over a pipe to each, and ends by closing them.

    python pipe_two_consumers.py [fork | spawn | forkserver]
"""

import sys
from multiprocessing import Pipe
from multiprocessing import Process, set_start_method
from multiprocessing.connection import wait


def produce(even, odd, total):
    for n in range(total):
        (odd if n % 2 else even).send(n)


def consume(source, sink):
    seen = 0
    try:
        while True:
            seen += source.recv()
    except EOFError:
        sink.send(seen)


if __name__ == "__main__":
    set_start_method(sys.argv[1] if len(sys.argv) > 1 else "fork")
    sums, processes, sources, sinks = [], [], [], []
    for _ in range(2):
        source, sink = Pipe(duplex=False)
        sources.append(source)
        sinks.append(sink)
    producer = Process(target=produce, args=(*sinks, 5000))
    producer.start()
    # Before the consumers are there, which would inherit them.
    for sink in sinks:
        sink.close()
    for source in sources:
        mine, theirs = Pipe(duplex=False)
        processes.append(Process(target=consume, args=(source, theirs)))
        processes[-1].start()
        source.close()
        theirs.close()
        sums.append(mine)
    seen = {}
    while len(seen) < 2:
        for conn in wait([conn for conn in sums if conn not in seen]):
            seen[conn] = conn.recv()
    print("even", seen[sums[0]], "odd", seen[sums[1]])
    for p in [producer, *processes]:
        p.join()
