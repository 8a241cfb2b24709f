"""The programs in examples/: the same output as they are, with Pipe and queues imported from ringpipe, and altogether unchanged by `python -m ringpipe`."""

import pathlib
import re
import subprocess
import sys

import pytest

EXAMPLES = sorted((pathlib.Path(__file__).parent.parent / "examples").glob("*.py"))
METHODS = ["fork", "spawn", "forkserver"]
NAMES = "Pipe|Queue|JoinableQueue|SimpleQueue"


def output(*command):
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_there_are_examples():
    assert len(EXAMPLES) >= 9


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("program", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_a_program_says_the_same(program, method, tmp_path):
    expected = output(program, method)
    assert expected.count("\n") >= 1
    assert output("-m", "ringpipe", program, method) == expected
    changed, count = re.subn(rf"^from multiprocessing import ({NAMES})$", r"from ringpipe import \1", program.read_text(), flags=re.MULTILINE)
    # Pools import nothing of ours.
    assert count == (program.stem != "pools")
    if count:
        copy = tmp_path / program.name
        copy.write_text(changed)
        assert output(copy, method) == expected
