"""This machine's clocks, moved: the time of day by steps, CLOCK_MONOTONIC and CLOCK_BOOTTIME by their rate. CLOCK_MONOTONIC_RAW
stays as it is. For machines whose clocks nobody else goes by.
"""

import ctypes
import os
import time

HOUR = 3600.0
# In how far the kernel lets itself be slewed: a tenth, by the length of its tick.
SLEW_MAX = 0.1
ADJ_TICK = 0x4000


class Timex(ctypes.Structure):
    """struct timex of adjtimex(2); only its mode and its tick are used."""

    _fields_ = [
        ("modes", ctypes.c_uint), ("before", ctypes.c_byte * 84), ("tick", ctypes.c_long), ("after", ctypes.c_byte * 128),
    ]  # fmt: skip


def step(seconds):
    """Sets the time of day by so much."""
    time.clock_settime(time.CLOCK_REALTIME, time.clock_gettime(time.CLOCK_REALTIME) + seconds)


def slew(share):
    """From now on the clocks run so much faster, or slower; by 0 as they did."""
    hertz = 100
    nominal = 1_000_000 // hertz
    timex = Timex(modes=ADJ_TICK, tick=nominal + round(nominal * share))
    if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex)) < 0:
        raise OSError(ctypes.get_errno(), f"slew the clocks by {share}")


def rate(seconds=0.5):
    """How fast CLOCK_BOOTTIME runs by CLOCK_MONOTONIC_RAW, measured over about so long."""
    def read():
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)

    boot, raw = read()
    time.sleep(seconds)
    boot_after, raw_after = read()
    return (boot_after - boot) / (raw_after - raw)
