"""install(): what it reaches, and leaves; the queues that it puts in the place of multiprocessing's; pools upon it."""

import inspect
import logging.handlers
import multiprocessing
import os
import pathlib
import queue
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, queues, spawn
from multiprocessing.context import BaseContext

import install_helpers as helpers
import pytest
from conftest import until

import ringpipe
from ringpipe import _install

METHODS = ["fork", "spawn", "forkserver"]
FUNCTIONS = [connection.Pipe, BaseContext.Queue, BaseContext.JoinableQueue, BaseContext.SimpleQueue, spawn.get_preparation_data]
BEFORE = [(function, function.__code__, inspect.signature(function)) for function in FUNCTIONS]


def nothing_is_left():
    return all(function.__code__ is code for function, code, _signature in BEFORE) and helpers.kinds() == {"multiprocessing"}


@pytest.fixture
def installed():
    with ringpipe.installed():
        yield
    assert nothing_is_left()


@pytest.fixture(params=METHODS)
def context(request):
    return multiprocessing.get_context(request.param)


def run(code, *args):
    return subprocess.run([sys.executable, *args, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)


# --- what is reached -------------------------------------------------------------------------------------


def test_all_names_are_reached_and_given_back():
    assert nothing_is_left()
    for _ in range(2):
        ringpipe.install()
        ringpipe.install()
        assert helpers.kinds() == {"ringpipe"}
        for function, code, signature in BEFORE:
            assert inspect.signature(function) == signature
        ringpipe.uninstall()
        assert nothing_is_left()
    ringpipe.uninstall()
    assert nothing_is_left()


def test_the_context_manager_leaves_what_was_there_before():
    with pytest.raises(KeyError):
        with ringpipe.installed():
            with ringpipe.installed():
                assert helpers.kinds() == {"ringpipe"}
            assert helpers.kinds() == {"ringpipe"}
            raise KeyError
    assert nothing_is_left()
    ringpipe.install()
    with ringpipe.installed():
        pass
    assert helpers.kinds() == {"ringpipe"}
    with ringpipe.installed():
        ringpipe.uninstall()
        assert helpers.kinds() == {"ringpipe"}
    assert nothing_is_left()


def test_what_somebody_else_has_replaced_is_refused_with_nothing_changed(monkeypatch):
    for replacement in (print, lambda objects: objects, functools_partial()):
        monkeypatch.setattr(connection, "Pipe", replacement)
        with pytest.raises(RuntimeError, match="Pipe of multiprocessing is not what ringpipe knows"):
            ringpipe.install()
        with pytest.raises(RuntimeError):
            with ringpipe.installed():
                raise AssertionError("not reached")
        monkeypatch.undo()
        assert nothing_is_left()
    with ringpipe.installed():
        assert helpers.kinds() == {"ringpipe"}
    assert nothing_is_left()


def functools_partial():
    import functools

    return functools.partial(connection.Pipe)


def test_an_exception_in_the_middle_leaves_nothing_changed(monkeypatch):
    class Interrupted(list):
        def append(self, item):
            super().append(item)
            if len(self) == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(_install, "_changed", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        ringpipe.install()
    assert nothing_is_left()


def test_what_was_made_meanwhile_goes_on_working():
    with ringpipe.installed():
        a, b = multiprocessing.Pipe()
        q, joinable = multiprocessing.Queue(), multiprocessing.JoinableQueue(1)
    a.send(1)
    q.put(2)
    joinable.put(3)
    assert (b.recv(), q.get(), joinable.get()) == (1, 2, 3)
    joinable.task_done()
    joinable.join()


def test_the_classes_are_those_of_multiprocessing(installed):
    assert isinstance(multiprocessing.Queue(), queues.Queue)
    assert isinstance(multiprocessing.JoinableQueue(), (queues.JoinableQueue, ringpipe.JoinableQueue))
    assert isinstance(multiprocessing.SimpleQueue(), queues.SimpleQueue)
    assert isinstance(multiprocessing.Pipe()[0], connection.Connection)
    # Who subclasses the original's has its workings, over our pipe.
    q = queues.Queue(ctx=multiprocessing.get_context())
    assert type(q._reader) is ringpipe.Connection
    q.put([1])
    assert q.get() == [1]
    q.close()
    q.join_thread()


def test_children_and_their_children_are_reached(context, installed):
    mine, theirs = multiprocessing.Pipe(False)
    child = context.Process(target=helpers.tell, args=(theirs, context.get_start_method(), 1))
    child.start()
    assert [mine.recv(), mine.recv()] == [{"ringpipe"}] * 2
    child.join()


def test_children_that_are_started_after_uninstall_are_not_reached(context):
    for kind in ({"ringpipe"}, {"multiprocessing"}):  # by the same fork server
        mine, theirs = ringpipe.Pipe(False)
        if kind == {"ringpipe"}:
            ringpipe.install()
        child = context.Process(target=helpers.tell, args=(theirs, context.get_start_method(), 0))
        child.start()
        ringpipe.uninstall()
        assert mine.recv() == kind
        child.join()


def test_other_programs_are_not_reached(installed):
    before = dict(os.environ)
    done = run("import multiprocessing; print(type(multiprocessing.Pipe()[0]).__module__)")
    assert done.stdout == "multiprocessing.connection\n"
    assert dict(os.environ) == before


def test_a_child_finds_what_its_parent_has_found_by_its_own_path(tmp_path):
    # No site-packages, so only the path that the program sets leads to the package.
    done = run(
        f"""
        import sys
        sys.path.insert(0, {str(pathlib.Path(ringpipe.__file__).parent.parent)!r})
        sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
        import multiprocessing, ringpipe, install_helpers
        if __name__ == "__main__":
            ringpipe.install()
            for method in ("spawn", "forkserver"):
                mine, theirs = multiprocessing.Pipe(False)
                multiprocessing.get_context(method).Process(target=install_helpers.tell, args=(theirs, method, 1)).start()
                print(mine.recv(), mine.recv())
        """,
        "-S",
    )
    assert (done.stdout, done.stderr) == ("{'ringpipe'} {'ringpipe'}\n" * 2, "")


def test_the_start_method_can_still_be_chosen():
    done = run("import ringpipe; ringpipe.install(); import multiprocessing as m; print(m.get_start_method(allow_none=True)); m.set_start_method('spawn'); print(m.Queue().get_nowait.__name__)")
    assert (done.stdout, done.stderr) == ("None\nget_nowait\n", "")


def test_a_fork_while_another_thread_installs(fork, thread):
    stop = threading.Event()

    def again_and_again():
        while not stop.is_set():
            with ringpipe.installed():
                pass

    thread(again_and_again)

    def child():
        assert helpers.kinds() in ({"ringpipe"}, {"multiprocessing"})
        with ringpipe.installed():
            assert helpers.kinds() == {"ringpipe"}

    for _ in range(20):
        os.waitpid(fork(child), 0)
    stop.set()


def test_a_program_is_run_unchanged(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            from multiprocessing import Pipe, Process, set_start_method
            import sys

            def child(conn):
                conn.send((__name__, type(Pipe()[0]).__module__))

            if __name__ == "__main__":
                import helper_beside
                set_start_method("spawn")
                mine, theirs = Pipe()
                Process(target=child, args=(theirs,)).start()
                print(mine.recv(), sys.argv[1:], __file__)
                sys.exit(int(sys.argv[2]))
            """
        )
    )
    (tmp_path / "helper_beside.py").write_text("")
    done = subprocess.run([sys.executable, "-m", "ringpipe", program, "-x", "7"], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == (f"('__mp_main__', 'ringpipe._connection') ['-x', '7'] {program}\n", "", 7)
    done = subprocess.run([sys.executable, "-m", "ringpipe"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "program.py" in done.stderr


def test_a_program_is_run_with_the_path_that_it_would_have_by_itself(tmp_path):
    (tmp_path / "link").mkdir()
    program = tmp_path / "program.py"
    program.write_text("import sys; print(sys.path)")
    (tmp_path / "link" / "program.py").symlink_to(program)
    for option in ("-B", "-I", "-P") if sys.version_info >= (3, 11) else ("-B", "-I"):
        alone, ours = (
            subprocess.run([sys.executable, option, *module, tmp_path / "link" / "program.py"], capture_output=True, text=True, timeout=60)
            for module in ((), ("-m", "ringpipe"))
        )
        assert (ours.stdout, ours.stderr) == (alone.stdout, ""), option


# --- queues ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue"])
def test_a_queue_is_filled_before_anybody_gets(installed, context, kind):
    count = 30_000
    q, back = getattr(context, kind)(), context.Queue()
    for n in range(count):
        q.put(n, block=n % 2 == 0)
    q.put(None)
    assert not q.full()
    assert not q.empty()
    consumer = context.Process(target=helpers.count_until_none, args=(q, back))
    consumer.start()
    # Received in the order put, the overflow after the ring; and as one object that is longer than anything in the way.
    assert back.get(timeout=60) == list(range(count))
    consumer.join()
    until(lambda: q.empty() and q.qsize() == 0)
    q.put("again")
    assert q.get(timeout=10) == "again"


@pytest.mark.parametrize("maxsize", [0, 10])
def test_what_is_longer_than_the_ring_waits_for_nobody(installed, maxsize):
    q = multiprocessing.Queue(maxsize)
    objects = [bytes([n]) * 10_000_000 for n in range(8)]
    for obj in objects:
        q.put(obj)
    assert q.qsize() == 8
    assert [q.get(timeout=30) for _ in objects] == objects
    until(q.empty)


def test_a_limit_counts_what_the_ring_has_no_room_for(installed):
    q = multiprocessing.Queue(6)
    for n in range(6):
        q.put((n, bytes(5_000_000)))
    assert q.full()
    for late in (dict(block=False), dict(timeout=0.05)):
        with pytest.raises(queue.Full):
            q.put(6, **late)
    with pytest.raises(ZeroDivisionError):
        assert q.get()[0] == 0
        q.put(helpers.Unpicklable())
    q.put(6)
    with pytest.raises(queue.Full):
        q.put_nowait(7)
    assert [q.get()[0] for _ in range(5)] == [1, 2, 3, 4, 5]
    assert q.get() == 6
    until(lambda: not q.full() and q._slots._semlock._get_value() == 6)


def test_a_put_waits_for_a_place_and_gets_the_ring_at_once_then(installed, thread):
    q = multiprocessing.Queue(1)
    q.put(0)
    thread(lambda: [q.put(n, timeout=30) for n in range(1, 300)])
    assert [q.get(timeout=30) for _ in range(300)] == list(range(300))


def test_threads_put_each_in_its_order(installed, thread):
    q = multiprocessing.Queue()
    count = 8_000
    threads = [thread(lambda name=name: [q.put((name, n)) for n in range(count)]) for name in range(4)]
    for started in threads:
        started.join()  # nobody has got anything yet
    assert q.qsize() > 4 * count - 100
    next_of = [0] * 4
    for _ in range(4 * count):
        name, n = q.get(timeout=30)
        assert n == next_of[name]
        next_of[name] += 1
    assert next_of == [count] * 4


def test_a_child_that_ends_has_put_all_first(installed, context):
    q = context.Queue()
    items = [bytes(1000)] * 5000
    child = context.Process(target=helpers.put_all, args=(q, items))
    child.start()
    assert [q.get(timeout=30) for _ in items] == items
    child.join()
    assert child.exitcode == 0


def test_a_child_that_was_told_not_to_wait_ends(installed, context):
    q = context.Queue()
    child = context.Process(target=helpers.put_and_leave, args=(q, 3000, 1000))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert len(q.get()) == 1000


def test_the_interpreter_waits_for_what_was_put_unless_told_otherwise():
    done = run(
        """
        import multiprocessing, os, time, ringpipe
        ringpipe.install()
        context = multiprocessing.get_context("fork")
        q, lost = context.Queue(), context.Queue()
        def child():
            time.sleep(0.5)
            for n in range(4000):
                assert q.get() == bytes([n % 256]) * 999
            os.write(1, b"all\\n")
        if __name__ == "__main__":
            process = context.Process(target=child)
            process.start()
            for n in range(4000):
                q.put(bytes([n % 256]) * 999)
                lost.put(bytes(999))
            lost.cancel_join_thread()
        """
    )
    assert (done.stdout, done.stderr, done.returncode) == ("all\n", "", 0)


def test_close_lets_the_rest_go(installed):
    q = multiprocessing.Queue()
    for n in range(30):
        q.put((n, bytes(300_000)))
    receiver = type(q).__new__(type(q))
    receiving, sending, fds = q._parts()
    receiver._attach(receiving, sending, [os.dup(fd) for fd in fds])
    receiver._start_empty()
    q.close()
    q.close()
    for use in (lambda: q.put(1), q.get, lambda: q.put_nowait(1)):
        with pytest.raises(ValueError, match="is closed"):
            use()
    assert [receiver.get(timeout=30)[0] for _ in range(30)] == list(range(30))
    q.join_thread()
    receiver.close()


def test_nothing_is_left_open(installed):
    def use():
        for maxsize in (0, 30):
            q = multiprocessing.Queue(maxsize)
            for n in range(20):
                q.put((n, bytes(300_000)))
            assert [q.get()[0] for _ in range(20)] == list(range(20))
            q.close()
            q.join_thread()
        with pytest.raises(AssertionError):
            multiprocessing.Queue().join_thread()

    use()
    before = sorted(os.listdir("/proc/self/fd"))
    threads = threading.active_count()
    for _ in range(3):
        use()
    until(lambda: sorted(os.listdir("/proc/self/fd")) == before and threading.active_count() == threads)


def test_a_fork_leaves_to_the_parent_what_it_has_put(installed, fork):
    q = multiprocessing.Queue()
    for n in range(20):
        q.put((n, bytes(300_000)))

    def child():
        for n in range(20):
            q.put(("child", n, bytes(300_000)))
        q.close()
        q.join_thread()

    fork(child)
    got = [q.get(timeout=30)[:-1] for _ in range(40)]
    assert [item for item in got if len(item) == 1] == [(n,) for n in range(20)]
    assert [item for item in got if len(item) == 2] == [("child", n) for n in range(20)]


@pytest.mark.parametrize("maxsize", [0, 100])
def test_a_reducer_may_put_into_the_queue_that_it_is_put_into(installed, maxsize):
    q = multiprocessing.Queue(maxsize)
    for _ in range(20):
        q.put(bytes(300_000))
    q.put(helpers.Reducing(q))
    got = [q.get(timeout=30) for _ in range(22)]
    assert got[20:] == ["inner", "outer"]


def test_signal_handlers_put_while_the_ring_has_no_room(installed):
    q = multiprocessing.Queue()
    for _ in range(20):
        q.put(bytes(300_000))
    count = 10_000
    inside = []

    def put(_number, _frame):
        # Not into itself: on a busy machine the next may come before this is done.
        if not inside:
            inside.append(True)
            q.put("handler")
            inside.pop()

    before = signal.signal(signal.SIGALRM, put)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for n in range(count):
            q.put(n)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    q.put(None)
    got = list(iter(lambda: q.get(timeout=30), None))
    assert [item for item in got[20:] if item != "handler"] == list(range(count))
    assert "handler" in got


def test_tasks_that_the_ring_has_no_room_for_are_counted(installed, context):
    q = context.JoinableQueue()
    for _ in range(30):
        q.put(bytes(300_000))
    workers = [context.Process(target=helpers.finish_tasks, args=(q,), daemon=True) for _ in range(2)]
    for process in workers:
        process.start()
    q.join()
    with pytest.raises(ValueError):
        q.task_done()
    for process in workers:
        process.kill()
        process.join()


def test_a_queue_for_log_records(installed):
    q = multiprocessing.Queue()
    seen = []

    class Handler(logging.Handler):
        def emit(self, record):
            seen.append(record.getMessage())

    listener = logging.handlers.QueueListener(q, Handler())
    listener.start()
    logger = logging.getLogger("ringpipe.test_install")
    logger.propagate = False
    logger.addHandler(logging.handlers.QueueHandler(q))
    for n in range(100):
        logger.error("record %d", n)
    until(lambda: len(seen) == 100)
    listener.stop()
    assert seen == [f"record {n}" for n in range(100)]


def test_a_managers_queue(installed, context):
    with context.Manager() as manager:
        q = manager.Queue()
        child = context.Process(target=helpers.put_all, args=(q, range(10)))
        child.start()
        assert [q.get(timeout=30) for _ in range(10)] == list(range(10))
        child.join()


# --- pools -----------------------------------------------------------------------------------------------


def test_a_pool(installed, context):
    with context.Pool(2, helpers.initialize, ("value",), maxtasksperchild=50) as pool:
        assert type(pool._inqueue._reader) is ringpipe.Connection
        assert pool.map(helpers.initialized, range(4)) == ["value"] * 4
        assert sum(pool.imap(helpers.negative, range(10_000), chunksize=25)) == -sum(range(10_000))
        assert [len(result) for result in pool.imap_unordered(helpers.much, [3_000_000] * 6)] == [3_000_000] * 6
        assert pool.map(len, [bytes(3_000_000)] * 6) == [3_000_000] * 6
        with pytest.raises(LookupError):
            pool.apply(helpers.fail, (1,))
        with pytest.raises(multiprocessing.pool.MaybeEncodingError):
            pool.apply(helpers.return_unpicklable, (1,))
        with pytest.raises(ZeroDivisionError):
            pool.apply(helpers.negative, (helpers.Unpicklable(),))
        pool.close()
        pool.join()


def test_a_pool_takes_many_short_tasks(installed):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        total = 0
        for result in pool.imap(helpers.negative, range(50_000)):
            total += result
        assert total == -sum(range(50_000))


# A result that the pipe has no room for may come when nobody receives any more: terminate() then waits for ever for the lock of the worker that sends it, with the original as well.
@pytest.mark.parametrize("size", [10, 20_000])
def test_a_pool_is_terminated_in_the_midst_of_work(installed, context, size):
    for _ in range(3):
        pool = context.Pool(2)
        results = [pool.map_async(helpers.much, [size] * 200, chunksize=1) for _ in range(10)]
        results[0].get(60)
        pool.terminate()
        pool.join()


def test_an_executor(installed, context):
    with ProcessPoolExecutor(2, context, helpers.initialize, ("value",)) as executor:
        assert list(executor.map(helpers.initialized, range(4))) == ["value"] * 4
        assert type(executor._result_queue._reader) is ringpipe.Connection
        assert sum(executor.map(helpers.negative, range(1000))) == -sum(range(1000))
        assert [len(result) for result in executor.map(helpers.much, [3_000_000] * 4)] == [3_000_000] * 4
        assert list(executor.map(len, [bytes(3_000_000)] * 4)) == [3_000_000] * 4
        assert type(executor.submit(helpers.fail, 1).exception(60)) is LookupError
        assert type(executor.submit(helpers.negative, helpers.Unpicklable()).exception(60)) is ZeroDivisionError
        assert type(executor.submit(helpers.return_unpicklable, 1).exception(60)) is ZeroDivisionError
        assert executor.submit(helpers.negative, 5).result(60) == -5


def test_an_executor_that_idles_hears_of_every_call(installed):
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as executor:
        for n in range(1500):
            assert executor.submit(helpers.negative, n).result(60) == -n


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_executor_whose_worker_is_killed_is_broken(installed, context, number):
    with ProcessPoolExecutor(2, context) as executor:
        before = [executor.submit(helpers.negative, n) for n in range(10)]
        assert [future.result(60) for future in before] == [-n for n in range(10)]
        futures = [executor.submit(helpers.slow, n) for n in range(10)]
        futures.append(executor.submit(helpers.die, number))
        futures += [executor.submit(helpers.slow, n) for n in range(50)]
        with pytest.raises(BrokenProcessPool):
            for future in futures:
                future.result(60)
        with pytest.raises(BrokenProcessPool):
            executor.submit(helpers.slow, 1)


def test_an_executor_whose_idle_worker_is_killed_is_broken(installed):
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as executor:
        os.kill(executor.submit(helpers.pid, 0).result(60), signal.SIGKILL)
        with pytest.raises(BrokenProcessPool):
            while True:
                executor.submit(helpers.slow, 0).result(60)


def test_an_executor_whose_workers_do_not_start_is_broken(installed, context):
    with ProcessPoolExecutor(1, context, helpers.refuse_to_start) as executor:
        with pytest.raises(BrokenProcessPool):
            executor.submit(helpers.negative, 1).result(60)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="has no max_tasks_per_child")
def test_an_executors_workers_are_replaced(installed):
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver"), max_tasks_per_child=2) as executor:
        pids = [executor.submit(helpers.pid, n).result(60) for n in range(6)]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [2, 2, 2]


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("cancel", [True, False])
def test_an_executor_is_shut_down(installed, context, wait, cancel):
    executor = ProcessPoolExecutor(2, context)
    futures = [executor.submit(helpers.slow, n) for n in range(20)]
    assert futures[0].result(60) == 0
    executor.shutdown(wait, cancel_futures=cancel)
    with pytest.raises(RuntimeError):
        executor.submit(helpers.slow, 1)
    until(lambda: all(future.done() for future in futures), 60)
    cancelled = sum(future.cancelled() for future in futures)
    assert (cancelled > 0) == cancel
    assert [future.result() for future in futures if not future.cancelled()] == [n for n in range(20) if not futures[n].cancelled()]


def test_an_executor_that_is_given_up_lets_its_workers_end(installed):
    executor = ProcessPoolExecutor(2, multiprocessing.get_context("fork"))
    worker = executor.submit(helpers.pid, 0).result(60)
    del executor
    until(lambda: not os.path.exists(f"/proc/{worker}"), 30)
