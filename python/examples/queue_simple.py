"""Three producers and one consumer share a queue without bells and whistles.

    python queue_simple.py [fork | spawn | forkserver]
"""

import sys
from multiprocessing import SimpleQueue
from multiprocessing import Process, set_start_method


def produce(q, name):
    for n in range(200):
        q.put((name, n))
    q.put((name, None))


if __name__ == "__main__":
    set_start_method(sys.argv[1] if len(sys.argv) > 1 else "fork")
    q = SimpleQueue()
    producers = [Process(target=produce, args=(q, name)) for name in "abc"]
    for p in producers:
        p.start()
    got = {name: [] for name in "abc"}
    while not all(items and items[-1] is None for items in got.values()):
        name, n = q.get()
        got[name].append(n)
    for p in producers:
        p.join()
    print("in order", all(items == [*range(200), None] for items in got.values()), "left", not q.empty())
