"""Pools of processes: multiprocessing.Pool and concurrent.futures.ProcessPoolExecutor.

    python pools.py [fork | spawn | forkserver]

Nothing is to be imported from elsewhere: `python -m ringpipe pools.py` runs it with ringpipe below.
"""

import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import Pool, set_start_method


def square(n):
    return n * n


def refuse(n):
    raise ValueError(f"not {n}")


def much(n):
    return bytes(n)


def die(n):
    os._exit(n)


if __name__ == "__main__":
    set_start_method(sys.argv[1] if len(sys.argv) > 1 else "fork")
    with Pool(3) as pool:
        print(sum(pool.map(square, range(1000))))
        print(list(pool.imap(square, range(5))), sorted(pool.imap_unordered(square, range(5))))
        print([len(result) for result in pool.map(much, [10, 100_000, 3_000_000])])
        try:
            pool.apply_async(refuse, (7,)).get()
        except ValueError as e:
            print("refused:", e)
    with ProcessPoolExecutor(3) as executor:
        print(sum(executor.map(square, range(300), chunksize=7)))
        print(sorted(len(future.result()) for future in as_completed(executor.submit(much, n) for n in (10, 3_000_000))))
        print(repr(executor.submit(refuse, 8).exception()))
    with ProcessPoolExecutor(2) as executor:
        try:
            print(executor.submit(die, 3).result())
        except BrokenProcessPool as e:
            print("broken:", type(e).__name__)
