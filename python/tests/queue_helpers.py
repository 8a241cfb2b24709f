"""What children of test_queue.py run: importable by those that are spawned."""

import os
import queue
import time


def put_all(q, items):
    for item in items:
        q.put(item)


def echo(q, back):
    while (item := q.get()) is not None:
        back.put(item)


def consume(q, back):
    """Gets until None comes, and puts all of it back as one list."""
    got = []
    while (item := q.get()) is not None:
        got.append(item)
    back.put(got)


def consume_one_by_one(q, back):
    while (item := q.get()) is not None:
        back.put((os.getpid(), item))


def produce_for_ever(q):
    n = 0
    while True:
        q.put((os.getpid(), n))
        n += 1


def finish_tasks(q):
    while q.get() is not None:
        time.sleep(0.001)
        q.task_done()
    q.task_done()


def wait_for_nothing(q):
    try:
        q.get(timeout=0.01)
    except queue.Empty:
        return
    raise AssertionError("there was something")
