"""Workers take tasks out of a queue that is filled first, and put results into another.

    python queue_workers.py [fork | spawn | forkserver]
"""

import sys
from multiprocessing import Queue
from multiprocessing import Process, current_process, set_start_method

STOP = "stop"


def double(n):
    return 2 * n


def spell(n):
    return f"number {n}"


def work(tasks, results):
    for function, n in iter(tasks.get, STOP):
        results.put((current_process().name, n, function(n)))


if __name__ == "__main__":
    set_start_method(sys.argv[1] if len(sys.argv) > 1 else "fork")
    tasks, results = Queue(), Queue()
    for n in range(100):
        tasks.put((double, n))
    workers = [Process(target=work, args=(tasks, results)) for _ in range(4)]
    for p in workers:
        p.start()
    for n in range(100, 200):
        tasks.put((spell, n))
    got = [results.get() for _ in range(200)]
    for _ in workers:
        tasks.put(STOP)
    for p in workers:
        p.join()
    print("by no others than", len({p.name for p in workers} | {name for name, _n, _result in got}))
    for _name, n, result in sorted(got, key=lambda item: item[1])[::20]:
        print(n, result)
    print("left", tasks.empty(), results.empty())
