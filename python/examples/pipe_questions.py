"""A child answers questions over a duplex pipe, until its parent closes that.

    python pipe_questions.py [fork | spawn | forkserver]
"""

import math
import sys
from multiprocessing import Pipe
from multiprocessing import Process, set_start_method


def answer(conn, others):
    others.close()  # where it was inherited, the file would never end
    answered = 0
    while True:
        try:
            question, *numbers = conn.recv()
        except EOFError:
            break
        try:
            conn.send(getattr(math, question)(*numbers))
        except (AttributeError, TypeError, ValueError) as e:
            conn.send(e)
        answered += 1
    print("answered", answered, flush=True)


if __name__ == "__main__":
    set_start_method(sys.argv[1] if len(sys.argv) > 1 else "fork")
    mine, theirs = Pipe(duplex=True)
    p = Process(target=answer, args=(theirs, mine))
    p.start()
    theirs.close()
    for question in [("factorial", 30), ("gcd", 84, 36), ("sqrt", -1), ("hypot", 3, 4), ("nonsense",)]:
        mine.send(question)
        print(question, repr(mine.recv()))
    mine.send(("prod", range(1, 2000)))
    print("with", mine.recv().bit_length(), "bits")
    mine.close()
    p.join()
