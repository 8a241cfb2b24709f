"""Arguments that are rarely given, or not of the usual kind: checked in the order, and with the messages, of the standard library."""

import math
import time
from multiprocessing import BufferTooShort

__all__ = ["BufferTooShort", "length", "milliseconds", "part", "receive_into"]

# The longest time that poll(2) takes.
_LONGEST = 2**31 - 1
# More than the longest message.
_ENDLESS = 2**63 - 1


def part(buf, offset, size):
    """The bytes of buf that send_bytes is asked to send."""
    view = memoryview(buf)
    if view.itemsize > 1 or view.ndim != 1:
        view = view.cast("B")
    total = view.nbytes
    if offset < 0:
        raise ValueError("offset is negative")
    if total < offset:
        raise ValueError("buffer length < offset")
    if size is None:
        size = total - offset
    elif size < 0:
        raise ValueError("size is negative")
    elif offset + size > total:
        raise ValueError("buffer length < offset + size")
    return view[offset : offset + size]


def length(maxlength):
    """The whole number of bytes that maxlength allows."""
    if maxlength < 0:
        raise ValueError("negative maxlength")
    if maxlength >= _ENDLESS or maxlength != maxlength:
        return _ENDLESS
    return math.floor(maxlength)


def milliseconds(timeout):
    """A timeout of poll, other than None, in whole milliseconds."""
    time.monotonic() + timeout  # TypeError for what is no time
    if timeout <= 0:
        return 0
    whole = math.ceil(timeout * 1000)
    if whole > _LONGEST:
        raise OverflowError("timeout is too large")
    return whole


def receive_into(receive, buf, offset):
    """recv_bytes_into, for buffers of any kind."""
    with memoryview(buf) as view:
        itemsize = view.itemsize
        room = itemsize * len(view)
        if offset < 0:
            raise ValueError("negative offset")
        if offset > room:
            raise ValueError("offset too large")
        # Whatever else would be wrong with the place is found when the message is there, and before it is taken.
        receive.look()
        view[offset // itemsize :]
        if view.readonly:
            raise TypeError("read-write bytes-like object expected")
        if not view.c_contiguous:
            raise TypeError("a buffer is needed whose bytes lie in one piece, in C order")
        message = receive()
        end = offset + len(message)
        if room < end:
            raise BufferTooShort(message)
        with view[offset // itemsize : end // itemsize] as items, items.cast("B") as place:
            size = min(place.nbytes, len(message))
            place[:size] = message[:size]
        return len(message)
