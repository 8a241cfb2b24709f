"""What one process may do with an end while another uses it."""

import os
import signal
import time
from multiprocessing import connection

import pytest

import ringpipe


def test_what_wait_returns_can_be_received_at_once(fork):
    receiver, sender = ringpipe.Pipe(False)
    other, _its_peer = ringpipe.Pipe()
    count = 20_000

    def send():
        receiver.close()
        for number in range(count):
            sender.send(number)
            if number % 100 == 0:
                time.sleep(0.001)

    fork(send)
    sender.close()
    for number in range(count):
        assert connection.wait([receiver, other], 30) == [receiver]
        assert receiver.poll(), number
        assert receiver.recv() == number
    assert connection.wait([receiver]) == [receiver]
    with pytest.raises(EOFError):
        receiver.recv()


def test_polling_in_another_process_takes_nothing():
    receiver, sender = ringpipe.Pipe(False)
    polling = os.fork()
    if polling == 0:
        sender.close()
        while True:
            receiver.poll(0)
    try:
        sending = os.fork()
        if sending == 0:
            for number in range(200):
                sender.send_bytes(bytes([number]) * (10 if number % 3 else 1_000_000))
            os._exit(0)
        sender.close()
        for number in range(200):
            assert receiver.recv_bytes() == bytes([number]) * (10 if number % 3 else 1_000_000)
        assert os.waitpid(sending, 0)[1] == 0
    finally:
        os.kill(polling, signal.SIGKILL)
        os.waitpid(polling, 0)


def test_a_connection_that_pickling_closes_sends_nothing():
    class Closes:
        def __reduce__(self):
            sender.close()
            return (int, ())

    receiver, sender = ringpipe.Pipe(False)
    try:
        sender.send(Closes())
    except OSError as e:
        assert str(e) == "handle is closed"
    else:
        raise AssertionError("sent over a closed connection")
    try:
        receiver.recv()
    except EOFError:
        pass
    else:
        raise AssertionError("something arrived")
