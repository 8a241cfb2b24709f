"""Runs CPython's own tests of multiprocessing, and of ProcessPoolExecutor, twice, as they are and after ringpipe.install(), and compares.

    python tests/cpython.py                          # everything, which takes half an hour and more
    python tests/cpython.py -m fork -k '*Connection*' -k '*Poll*'
    python tests/cpython.py --connections            # what has to do with connections, in a minute
    python tests/cpython.py -m pools                 # only ProcessPoolExecutor

Needs a Python that has its test suite (`test._test_multiprocessing`; for the pools, `test.test_concurrent_futures`). Succeeds if no test does anything else than
before, but for those that DIFFERENT names.
"""

import argparse
import fnmatch
import importlib.util
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
import time
import unittest

METHODS = ["fork", "spawn", "forkserver"]
POOLS = "pools"

# What has to do with connections, and takes seconds.
CONNECTIONS = [
    "*TestConnection*", "*TestPoll*", "*PicklingConnections*", "*TestListenerClient*", "*PollEintr*", "*TestIgnoreEINTR*",
    "*TestSubclassingProcess*", "*SimpleQueue*", "*WithProcessesTestQueue*", "*InvalidHandle*", "*TestFlags*", "*CloseFds*", "*WithProcessesTestPool.test_apply*",
    "*TestWait*", "*TestTimeouts*",
]  # fmt: skip

# What cannot be the same, and why.
DIFFERENT = {
    "*TestConnection.test_missing_fd_transfer": "writes to the descriptor of a connection and reads from that of the other; here a descriptor is only to be watched. Not run.",
    "*TestQueue.test_queue_feeder_donot_stop_onexc": "expects that an error of the pickler is none of put; here there is no feeder thread to swallow it. Not run.",
    "*TestQueue.test_closed_queue_empty_exceptions": "expects that close does nothing to a queue that was not put into; here it is closed, and empty() says so. Not run.",
    "*TestStartMethod.test_mixed_startmethod": "expects that a queue of the fork context cannot be passed to a process that is spawned, because of its semaphores; here one without a limit has none, and can. Not run.",
    "*TestSimpleQueue.test_closed": "looks at an attribute that is not public. Not run.",
}

MODULE = """
import test._test_multiprocessing
test._test_multiprocessing.install_tests_in_module_dict(globals(), {method!r})
"""


class Outcomes(unittest.TextTestResult):
    """Notes what became of each test."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.outcomes = {}

    def addSuccess(self, test):
        super().addSuccess(test)
        self.outcomes.setdefault(test.id(), "ok")

    def addError(self, test, error):
        super().addError(test, error)
        self.outcomes[test.id()] = "error"

    def addFailure(self, test, error):
        super().addFailure(test, error)
        self.outcomes[test.id()] = "failure"

    def addSubTest(self, test, subtest, error):
        super().addSubTest(test, subtest, error)
        if error is not None:
            self.outcomes[test.id()] = "failure"

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.outcomes.setdefault(test.id(), "skipped")


def suite_of(method, loader):
    """The tests of one start method, or those of ProcessPoolExecutor, which are for all three."""
    if method != POOLS:
        return loader.loadTestsFromName(f"cpython_{method}")
    module = importlib.import_module("test.test_concurrent_futures")
    modules = [module]
    if hasattr(module, "__path__"):
        modules = [importlib.import_module(f"{module.__name__}.{info.name}") for info in pkgutil.iter_modules(module.__path__) if info.name.startswith("test_")]
    classes = [value for module in modules for name, value in vars(module).items() if name.startswith("ProcessPool") and isinstance(value, type) and issubclass(value, unittest.TestCase)]
    return unittest.TestSuite(loader.loadTestsFromTestCase(case) for case in classes)


def run_here(method, patterns, ours, out):
    """Runs the tests of one start method in this process."""
    if ours:
        import ringpipe

        ringpipe.install()
    loader = unittest.TestLoader()
    loader.testNamePatterns = patterns or None
    suite = suite_of(method, loader)

    # Class by class, as unittest does it, so that the fixtures of classes and of the module are run.
    def copy(suite):
        return unittest.TestSuite(
            copy(test) if isinstance(test, unittest.TestSuite) else test
            for test in suite
            if isinstance(test, unittest.TestSuite) or not any(fnmatch.fnmatchcase(test.id(), name) for name in DIFFERENT)
        )

    runner = unittest.TextTestRunner(resultclass=Outcomes, verbosity=2)
    result = runner.run(copy(suite))
    with open(out, "w") as file:
        json.dump(result.outcomes, file)


def run_there(method, patterns, ours, modules, timeout):
    """The same in a process of its own. Returns the outcomes and how long it took; the outcomes are None if it died, or took too long."""
    out = os.path.join(modules, "outcomes.json")
    if os.path.exists(out):
        os.remove(out)
    log = os.path.join(modules, f"{method}-{'ringpipe' if ours else 'stock'}.log")
    environment = dict(os.environ, PYTHONPATH=modules)
    command = [sys.executable, os.path.abspath(__file__), "--here", out, "-m", method]
    if ours:
        command.append("--installed")
    for pattern in patterns:
        command += ["-k", pattern]
    start = time.monotonic()
    with open(log, "w") as file:
        try:
            subprocess.run(command, env=environment, cwd=modules, stdout=file, stderr=file, timeout=timeout)
        except subprocess.TimeoutExpired:
            pass
    seconds = time.monotonic() - start
    if not os.path.exists(out):
        return None, seconds, log
    with open(out) as file:
        return json.load(file), seconds, log


def count(outcomes):
    kinds = sorted(set(outcomes.values()))
    return ", ".join(f"{sum(value == kind for value in outcomes.values())} {kind}" for kind in kinds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--method", action="append", choices=[*METHODS, POOLS], help="only this way to start processes, or only the pools")
    parser.add_argument("-k", "--pattern", action="append", default=[], help="only tests whose full name is like this")
    parser.add_argument("--connections", action="store_true", help="only tests that have to do with connections")
    parser.add_argument("--timeout", type=float, default=900, help="seconds that one run may take (%(default)s)")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    parser.add_argument("--installed", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    patterns = args.pattern + (CONNECTIONS if args.connections else [])
    if args.here:
        return run_here(args.method[0], patterns, args.installed, args.here)
    try:
        import test._test_multiprocessing  # noqa: F401
    except ImportError:
        print("!!! SKIPPED: this Python has no test suite")
        return 0

    failed = False
    with tempfile.TemporaryDirectory() as modules:
        for method in METHODS:
            with open(os.path.join(modules, f"cpython_{method}.py"), "w") as file:
                file.write(MODULE.format(method=method))
        for method in args.method or [*METHODS, POOLS]:
            if method == POOLS and importlib.util.find_spec("test.test_concurrent_futures") is None:
                print("!!! SKIPPED: this Python has no tests of ProcessPoolExecutor")
                continue
            stock, stock_seconds, stock_log = run_there(method, patterns, False, modules, args.timeout)
            ours, our_seconds, our_log = run_there(method, patterns, True, modules, args.timeout)
            for name, outcomes, log in (("stock", stock, stock_log), ("ringpipe", ours, our_log)):
                if not outcomes:
                    failed = True
                    print(f"{method}, {name}: the run died or took too long; the last it said:")
                    print("".join(open(log).readlines()[-60:]))
            if not stock or not ours:
                continue
            print(f"{method}: stock {count(stock)} ({stock_seconds:.0f} s); ringpipe {count(ours)} ({our_seconds:.0f} s)")
            for test in sorted(stock.keys() | ours.keys()):
                before, now = stock.get(test, "not run"), ours.get(test, "not run")
                if before != now:
                    failed = True
                    print(f"    {test}: {before} before, {now} with ringpipe")
                    text = open(our_log).read()
                    name = test.rsplit(".", 1)[-1]
                    for kind in ("ERROR: ", "FAIL: "):
                        for part in text.split("=" * 70)[1:]:
                            if part.lstrip().startswith(kind + name):
                                print("        " + part.strip().replace("\n", "\n        "))
    for name, reason in DIFFERENT.items():
        print(f"not compared: {name}: {reason}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
