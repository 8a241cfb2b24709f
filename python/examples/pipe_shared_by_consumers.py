"""A producer and three consumers that share one connection under a lock.

    python pipe_shared_by_consumers.py [fork | spawn | forkserver]
"""

import sys
from multiprocessing import Pipe
from multiprocessing import Lock, Process, set_start_method

ITEMS = 300
CONSUMERS = 3


def produce(conn):
    for n in range(ITEMS):
        conn.send((n, "x" * (n % 50)))
    for _ in range(CONSUMERS):
        conn.send(None)
    conn.close()


def consume(conn, lock, back, back_lock):
    while True:
        with lock:
            item = conn.recv()
        if item is None:
            break
        n, text = item
        with back_lock:
            back.send((n, len(text)))
    with back_lock:
        back.send(None)


if __name__ == "__main__":
    set_start_method(sys.argv[1] if len(sys.argv) > 1 else "fork")
    lock, back_lock = Lock(), Lock()
    items, producer_end = Pipe(False)
    results, consumer_end = Pipe(False)
    processes = [Process(target=produce, args=(producer_end,))]
    processes += [Process(target=consume, args=(items, lock, consumer_end, back_lock)) for _ in range(CONSUMERS)]
    for p in processes:
        p.start()
    got, ended = [], 0
    while ended < CONSUMERS:
        result = results.recv()
        if result is None:
            ended += 1
        else:
            got.append(result)
    for p in processes:
        p.join()
    print("results", len(got), "each once", sorted(got) == [(n, n % 50) for n in range(ITEMS)])
    print("exit codes", [p.exitcode for p in processes])
