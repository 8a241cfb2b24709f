"""What children of test_multiprocessing.py run: importable by those that are spawned."""

import multiprocessing


def echo(connection):
    while True:
        try:
            connection.send(connection.recv())
        except EOFError:
            return


def add(reader, writer):
    writer.send(sum(reader.recv()))


def both_ends(a, b):
    a.send("through")
    b.send(b.recv() + " me")


def from_the_child(back):
    from ringpipe import Pipe

    r, w = Pipe()
    w.send("made in the child")
    back.send(r)
    back.send((r.readable, r.writable, r.closed))
    w.recv()  # until the parent has taken it


def take(connection):
    other = connection.recv()
    other.send("received over a connection")
    connection.send("done")


def take_from_queue(queue, kind):
    connection = queue.get()
    connection.send((kind, type(connection).__module__, multiprocessing.get_start_method()))


def send_to(connection):
    connection.send("from the pool")
    return connection.readable
