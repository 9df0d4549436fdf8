"""Runs a block as a user whom file permissions bind, also where the tests run as root."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_VERSION_3 = 0x20080522  # capget(2)
_CAP_DAC_OVERRIDE = 1 << 1


@contextmanager
def bound_by_permissions() -> Iterator[None]:
    """Let this thread write only where the permissions allow its user to. Linux alone."""
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable; then their upper halves
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, sets) == 0
    before = sets[0]
    sets[0] = before & ~_CAP_DAC_OVERRIDE
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = before
        assert libc.capset(header, sets) == 0
