"""A child greets its parent over a pipe.

    python pipe_hello.py [fork | spawn | forkserver]
"""

import sys
from multiprocessing import Pipe
from multiprocessing import Process, set_start_method


def greet(conn, name):
    conn.send({"to": name, "words": ["hello", "from", "below"], "nothing": None})
    conn.close()


if __name__ == "__main__":
    set_start_method(sys.argv[1] if len(sys.argv) > 1 else "fork")
    parent_conn, child_conn = Pipe()
    p = Process(target=greet, args=(child_conn, "parent"))
    p.start()
    print(parent_conn.recv())
    p.join()
    print("exit code", p.exitcode)
