"""python -m ringpipe program.py [arguments]

Runs a program as `python program.py [arguments]` does, after ringpipe.install().
"""

import builtins
import io
import os
import sys
import types

from . import install


def run(program, arguments):
    """Runs a file as the main module."""
    with io.open_code(os.path.abspath(program)) as file:
        code = compile(file.read(), program, "exec")
    main = types.ModuleType("__main__")
    main.__file__ = program
    main.__builtins__ = builtins
    # Processes that are spawned look for it by its name, or by its file if it has none.
    main.__spec__ = None
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main
    sys.argv[:] = [program, *arguments]
    # Under -I and -P nothing was put there for the package, and nothing would be for the program.
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        sys.path[0] = os.path.dirname(os.path.realpath(program))
    install()
    exec(code, main.__dict__)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__.strip())
    run(sys.argv[1], sys.argv[2:])
