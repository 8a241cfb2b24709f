"""Workers that are never told to stop: the parent waits until all tasks are done.

    python queue_joinable.py [fork | spawn | forkserver]
"""

import sys
from multiprocessing import JoinableQueue
from multiprocessing import Barrier, Process, Value, set_start_method


def work(tasks, total, ready):
    ready.wait()
    while True:
        n = tasks.get()
        with total.get_lock():
            total.value += n
        tasks.task_done()


if __name__ == "__main__":
    set_start_method(sys.argv[1] if len(sys.argv) > 1 else "fork")
    tasks, total = JoinableQueue(), Value("q", 0)
    ready = Barrier(4)
    workers = [Process(target=work, args=(tasks, total, ready), daemon=True) for _ in range(3)]
    for p in workers:
        p.start()
    # One that is killed while it starts complains.
    ready.wait()
    for part in range(3):
        for n in range(500):
            tasks.put(n)
        tasks.join()
        print("after part", part, total.value)
    try:
        tasks.task_done()
    except ValueError as e:
        print(e)
