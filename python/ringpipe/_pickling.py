"""The pickler of objects that are sent over connections."""

import pickle
import sys
from multiprocessing.reduction import ForkingPickler


class Pickler(ForkingPickler):
    """Makes pickles of protocol 5, which has large buffers in one piece, that load as those of the standard library do."""

    def __init__(self, file):
        super().__init__(file, 5)
        if pickle.DEFAULT_PROTOCOL < 5:
            numpy = sys.modules.get("numpy")
            if hasattr(numpy, "ndarray"):
                self.dispatch_table.setdefault(numpy.ndarray, _reduce_array)


def _reduce_array(array):
    # By older protocols an array arrives as one that can be written to, and in the machine's byte order, even if this one is not.
    alike = array.flags.writeable and array.dtype.isnative
    return array.__reduce_ex__(5 if alike else pickle.DEFAULT_PROTOCOL)
