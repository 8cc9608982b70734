"""The clock that deadlines are kept by."""

import time


def read_boottime() -> float:
    """Return the seconds since this boot, suspended time included (CLOCK_BOOTTIME, Linux 2.6.39).

    Setting the wall clock does not move it, and it is the same for every process of a boot: with the boot id it says
    what a journal's deadline means to whoever reads it.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)
