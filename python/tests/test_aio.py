"""Connections and queues under asyncio."""

import asyncio
import os
import pickle
import socket
import time

import pytest

import ringpipe
from ringpipe import aio

# More than the ring has room for.
LONG = bytes(range(256)) * 4096


def run(main):
    """Runs main() in a loop of its own, for at most 60 seconds."""
    return asyncio.run(asyncio.wait_for(main(), 60))


async def asleep(task):
    """Waits until the task can be taken to be waiting."""
    await asyncio.sleep(0.05)
    assert not task.done()


async def cancelled(task):
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("message", [b"", b"short", LONG], ids=["empty", "short", "long"])
def test_messages_go_both_ways(message):
    async def main():
        a, b = (aio.Connection(end) for end in ringpipe.Pipe())
        for x, y in ((a, b), (b, a)):
            got, _ = await asyncio.gather(y.recv_bytes(), x.send_bytes(message))
            assert got == message
            got, _ = await asyncio.gather(y.recv(), x.send([message]))
            assert got == [message]
        await a.send_bytes(b"abcdef", 1, 3)
        assert await b.recv_bytes() == b"bcd"
        with pytest.raises(ValueError, match="offset is negative"):
            await a.send_bytes(b"x", -1)

    run(main)


def test_the_other_side_may_be_another_process_that_blocks(fork):
    a, b = ringpipe.Pipe()

    def child():
        a.close()
        while True:
            try:
                b.send(b.recv())
            except EOFError:
                return

    fork(child)
    b.close()

    async def main():
        async with aio.Connection(a) as connection:
            for obj in (1, "two", [LONG], LONG * 3):
                await connection.send(obj)
                assert await connection.recv() == obj
        assert connection.closed and a.closed

    run(main)


def test_iteration_ends_with_the_file_and_not_with_an_empty_message():
    async def main():
        r, w = ringpipe.Pipe(False)
        reader = aio.Connection(r)
        for number in range(3):
            w.send(number)
        w.close()
        assert [obj async for obj in reader] == [0, 1, 2]
        with pytest.raises(EOFError):
            await reader.recv()

        r, w = ringpipe.Pipe(False)
        w.send_bytes(b"")
        with pytest.raises(EOFError, match="Ran out of input"):
            async for _ in aio.Connection(r):
                pass

    run(main)


def test_a_receive_does_not_hold_up_the_loop_and_wakes_for_a_message_and_for_a_death(fork):
    r, w = ringpipe.Pipe(False)
    go, gone = ringpipe.Pipe(False)

    def child():
        r.close()
        go.recv()
        w.send("message")
        go.recv()

    fork(child)
    w.close()

    async def main():
        reader = aio.Connection(r)
        task = asyncio.ensure_future(reader.recv())
        await asleep(task)
        gone.send(1)
        assert await task == "message"
        task = asyncio.ensure_future(reader.recv())
        await asleep(task)
        gone.send(2)
        with pytest.raises(EOFError):
            await task

    run(main)


def test_a_receive_that_is_cancelled_loses_nothing():
    async def main():
        r, w = ringpipe.Pipe(False)
        reader = aio.Connection(r)
        for number in range(20):
            task = asyncio.ensure_future(reader.recv())
            await asyncio.sleep(0)
            # Before, and after, it has been told that there is something.
            w.send(number)
            for _ in range(number % 4):
                await asyncio.sleep(0)
            if task.done():
                assert task.result() == number
                continue
            task.cancel()
            try:
                assert await task == number
            except asyncio.CancelledError:
                assert r.recv() == number
        assert not r.poll()

    run(main)


def test_a_receive_that_is_cancelled_inside_a_long_message_keeps_what_has_arrived():
    async def main():
        r, w = ringpipe.Pipe(False)
        reader, writer = aio.Connection(r), aio.Connection(w)
        sending = asyncio.ensure_future(writer.send_bytes(LONG))
        await asleep(sending)
        receiving = asyncio.ensure_future(reader.recv_bytes())
        for _ in range(3):
            await asyncio.sleep(0)
        receiving.cancel()
        try:
            got = await receiving
        except asyncio.CancelledError:
            got = await reader.recv_bytes()
        assert got == LONG
        await sending

    run(main)


def test_a_send_that_waits_for_room_does_not_hold_up_the_loop():
    async def main():
        r, w = ringpipe.Pipe(False)
        writer = aio.Connection(w)
        task = asyncio.ensure_future(writer.send_bytes(LONG))
        ticks = 0
        for _ in range(20):
            await asyncio.sleep(0.002)
            ticks += 1
        assert ticks == 20 and not task.done()
        assert await asyncio.get_running_loop().run_in_executor(None, r.recv_bytes) == LONG
        await task

    run(main)


@pytest.mark.parametrize("filled", [False, True], ids=["in the middle", "before the start"])
def test_of_a_send_that_is_cancelled_nothing_arrives(filled):
    async def main():
        r, w = ringpipe.Pipe(False)
        writer = aio.Connection(w)
        short = bytes(1000)
        count = 0
        if filled:
            while True:
                try:
                    await asyncio.wait_for(writer.send_bytes(short), 0.2)
                except asyncio.TimeoutError:
                    break
                count += 1
        task = asyncio.ensure_future(writer.send_bytes(LONG))
        await asleep(task)
        await cancelled(task)
        for _ in range(count):
            assert r.recv_bytes() == short
        sending = asyncio.ensure_future(writer.send("next"))
        assert await aio.Connection(r).recv() == "next"
        await sending
        assert not r.poll()

    run(main)


def test_a_forked_child_does_not_take_back_what_its_parent_sends(fork):
    async def main():
        r, w = ringpipe.Pipe(False)
        writer = aio.Connection(w)
        coroutine = writer.send_bytes(LONG)
        task = asyncio.ensure_future(coroutine)
        await asleep(task)
        os.waitpid(fork(coroutine.close), 0)
        assert await aio.Connection(r).recv_bytes() == LONG
        await task

    run(main)


def test_several_tasks_receive_and_send_and_nothing_is_lost_or_torn():
    async def main():
        a, b = ringpipe.Pipe()
        sender, receiver = aio.Connection(a), aio.Connection(b)
        got = []

        async def consume():
            while True:
                got.append(await receiver.recv())

        async def produce(name):
            for number in range(30):
                await sender.send((name, number, LONG[: 100_000 if number % 10 == 0 else 10]))

        consumers = [asyncio.ensure_future(consume()) for _ in range(4)]
        await asyncio.gather(*(produce(name) for name in range(4)))
        while len(got) < 120:
            await asyncio.sleep(0.001)
        for consumer in consumers:
            await cancelled(consumer)
        for name in range(4):
            assert sorted(number for who, number, _ in got if who == name) == list(range(30))
        assert all(data == LONG[: 100_000 if number % 10 == 0 else 10] for _, number, data in got)

    run(main)


def test_those_who_wait_are_served_in_their_order():
    async def main():
        r, w = ringpipe.Pipe(False)
        reader = aio.Connection(r)
        order = []

        async def receive(name):
            order.append((name, await reader.recv()))

        tasks = []
        for name in "abcd":
            tasks.append(asyncio.ensure_future(receive(name)))
            await asyncio.sleep(0)
        await cancelled(tasks.pop(1))
        for number in range(3):
            w.send(number)
        await asyncio.gather(*tasks)
        assert order == [("a", 0), ("c", 1), ("d", 2)]

    run(main)


def test_tasks_that_always_find_something_let_others_run():
    async def main():
        r, w = ringpipe.Pipe(False)
        reader, others = aio.Connection(r), 0

        async def other():
            nonlocal others
            while True:
                others += 1
                await asyncio.sleep(0)

        task = asyncio.ensure_future(other())
        for _ in range(1000):
            w.send(0)
        for _ in range(1000):
            await reader.recv()
        assert others >= 10
        await cancelled(task)

    run(main)


def test_closing_ends_what_waits():
    async def main():
        a, b = ringpipe.Pipe()
        connection = aio.Connection(a)
        tasks = [asyncio.ensure_future(connection.recv()) for _ in range(3)]
        tasks.append(asyncio.ensure_future(connection.send_bytes(LONG)))
        for task in tasks:
            await asleep(task)
        connection.close()
        for task in tasks:
            with pytest.raises(OSError, match="handle is closed"):
                await task
        with pytest.raises(OSError, match="handle is closed"):
            await connection.recv()
        with pytest.raises(OSError, match="handle is closed"):
            await connection.send(1)

    run(main)


def test_a_send_that_waits_for_another_is_not_made_after_close():
    async def main():
        r, w = ringpipe.Pipe(False)
        writer = aio.Connection(w)
        tasks = [asyncio.ensure_future(writer.send_bytes(message)) for message in (LONG, b"late")]
        await asleep(tasks[1])
        writer.close()
        for task in tasks:
            with pytest.raises(OSError, match="handle is closed"):
                await task
        with pytest.raises(EOFError):
            r.recv_bytes()

    run(main)


@pytest.mark.parametrize("duplex", [False, True], ids=["simplex", "duplex"])
def test_a_message_that_is_too_long_ends_all_receives(duplex):
    async def main():
        r, w = ringpipe.Pipe(duplex)
        reader = aio.Connection(r)
        tasks = [asyncio.ensure_future(reader.recv_bytes(4)) for _ in range(3)]
        for task in tasks:
            await asleep(task)
        w.send_bytes(b"12345")
        others = "connection is write-only" if duplex else "handle is closed"
        for task, message in zip(tasks, ("bad message length", others, others)):
            with pytest.raises(OSError, match=message):
                await asyncio.wait_for(task, 10)

    run(main)


def test_errors_are_those_of_a_plain_connection():
    async def main():
        r, w = ringpipe.Pipe(False)
        reader, writer = aio.Connection(r), aio.Connection(w)
        with pytest.raises(OSError, match="connection is read-only"):
            await reader.send(1)
        with pytest.raises(OSError, match="connection is write-only"):
            await writer.recv()
        with pytest.raises((pickle.PicklingError, AttributeError)):
            await writer.send(lambda: 0)
        with pytest.raises(ValueError, match="negative maxlength"):
            await reader.recv_bytes(-1)
        w.send_bytes(b"12345")
        with pytest.raises(OSError, match="bad message length"):
            await reader.recv_bytes(4)
        with pytest.raises(BrokenPipeError):
            await writer.send_bytes(LONG)
        a, b = socket.socketpair()
        with a, b, pytest.raises(TypeError):
            aio.Connection(a)

    run(main)


def test_a_send_to_a_process_that_is_killed_ends(fork):
    r, w = ringpipe.Pipe(False)

    def child():
        w.close()
        time.sleep(0.1)
        os._exit(0)

    fork(child)
    r.close()

    async def main():
        with pytest.raises(BrokenPipeError):
            await aio.Connection(w).send_bytes(LONG)

    run(main)


def test_no_watcher_is_left_behind():
    async def main():
        r, w = ringpipe.Pipe(False)
        reader = aio.Connection(r)
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(reader.recv())
        await asleep(task)
        w.send(1)
        assert await task == 1
        assert not loop.remove_reader(r.fileno())
        task = asyncio.ensure_future(reader.recv())
        await asleep(task)
        await cancelled(task)
        assert not loop.remove_reader(r.fileno())

    run(main)


def test_queues_are_got_from_and_put_into():
    async def main():
        queue = ringpipe.Queue(2)
        task = asyncio.ensure_future(aio.get(queue))
        await asleep(task)
        queue.put("first")
        assert await task == "first"
        task = asyncio.ensure_future(aio.get(queue))
        await asleep(task)
        await cancelled(task)
        await aio.put(queue, 1)
        await aio.put(queue, 2)
        task = asyncio.ensure_future(aio.put(queue, 3))
        await asleep(task)
        assert await aio.get(queue) == 1
        await task
        task = asyncio.ensure_future(aio.put(queue, 4))
        await asleep(task)
        await cancelled(task)
        assert [await aio.get(queue), await aio.get(queue)] == [2, 3]
        assert queue.empty()
        small = ringpipe.Queue(capacity=4096)
        await aio.put(small, LONG)
        assert await aio.get(small) == LONG

    run(main)


def test_two_loops_in_two_threads_share_a_pipe(thread):
    a, b = ringpipe.Pipe()
    total = []

    def ask():
        async def main():
            async with aio.Connection(a) as connection:
                for number in range(200):
                    await connection.send(number)
                    total.append(await connection.recv())

        run(main)

    def answer():
        async def main():
            connection = aio.Connection(b)
            async for number in connection:
                await connection.send(2 * number)

        run(main)

    thread(answer)
    thread(ask).join(30)
    assert total == [2 * number for number in range(200)]
