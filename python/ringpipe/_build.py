"""What kind of Python this runs in."""

import sysconfig


def check(config=sysconfig.get_config_vars()):
    """Raise ImportError in a build of Python without a GIL, which the native part counts on."""
    if config.get("Py_GIL_DISABLED"):
        raise ImportError("ringpipe does not support free-threaded builds of Python yet: use one with a GIL")
