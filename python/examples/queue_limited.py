"""A producer that is faster than the consumer, which a limit holds back; time-outs.

    python queue_limited.py [fork | spawn | forkserver]
"""

import queue
import sys
import time
from multiprocessing import Queue
from multiprocessing import Process, set_start_method


def consume(q, back):
    total = count = 0
    while (item := q.get()) is not None:
        time.sleep(0.001)
        total += item
        count += 1
    back.put((count, total))


if __name__ == "__main__":
    set_start_method(sys.argv[1] if len(sys.argv) > 1 else "fork")
    q, back = Queue(3), Queue()
    for n in range(3):
        q.put(n)
    try:
        q.put(3, timeout=0.05)
    except queue.Full:
        print("full", q.full(), q.qsize())
    p = Process(target=consume, args=(q, back))
    p.start()
    for n in range(3, 200):
        q.put(n)
    q.put(None)
    print(back.get(timeout=60))
    p.join()
    try:
        back.get(timeout=0.05)
    except queue.Empty:
        print("empty", back.empty())
