"""Whether the machine was quiet: how much of the cores' time went to work that is not ours.

Threads that wait for each other lose much more than the share of a core that another program
takes (a step of two threads was seen to take a hundred times as long), so times from a machine that
does other work say nothing.  Linux counts the time of each core and of each process in /proc; what
the cores were busy with, less what our processes used, is others' work.  Time that a hypervisor
gave to other guests counts as theirs.
"""

import os
import time
from pathlib import Path

BUSY = (0, 1, 2, 5, 6, 7)  # user, nice, system, irq, softirq, steal: columns of /proc/stat
PROC = Path("/proc")
ALLOWED = 0.05  # share of the cores' time that others may use: a quiet system uses 0.00 to 0.02
SPREAD = 0.15  # quartiles of a ratio may lie so far apart, as a share of it


def _busy(cores, proc):
    """Return the seconds for which these cores were busy since the system started."""
    ticks = 0
    for line in (proc / "stat").read_text().splitlines():
        name, *columns = line.split()
        if name.startswith("cpu") and name[3:].isdecimal() and int(name[3:]) in cores:
            ticks += sum(int(columns[i]) for i in BUSY)
    return ticks / os.sysconf("SC_CLK_TCK")


def _used(sessions, proc):
    """Return the seconds that this process and all processes of these sessions have used."""
    ticks = 0
    for path in proc.glob("[0-9]*/stat"):
        try:
            # state ppid pgrp session tty tpgid flags and 4 counts; utime stime cutime cstime
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        if int(fields[3]) in sessions or path.parent.name == str(os.getpid()):
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


class Watch:
    """How much of the cores' time others use, from now on.

    sessions: those of our processes.  None where the system does not say.
    """

    def __init__(self, sessions=(), proc=PROC):
        self._sessions, self._proc = frozenset(sessions), proc
        self._cores = os.sched_getaffinity(0)
        self._start = self._now()

    def _now(self):
        try:
            busy, used = _busy(self._cores, self._proc), _used(self._sessions, self._proc)
        except OSError:
            return None
        return time.perf_counter(), busy - used

    def others(self):
        """Return the share of the cores' time since the start, 0 to 1, or None."""
        now = self._now()
        if now is None or self._start is None:
            return None
        seconds, others = (b - a for a, b in zip(self._start, now, strict=True))
        return min(1.0, max(0.0, others / (seconds * len(self._cores))))


def idle_check(seconds=2.0):
    """Return the share of the cores' time that others use while we do nothing, or None."""
    watch = Watch()
    time.sleep(seconds)
    return watch.others()


def disturbance(before, during, ratio, ratio_quartiles):
    """Return in words why a row says nothing about speed, or None where it may be believed.

    before, during: shares of the cores' time that others used, or None where that is not known.
    """
    for share, when in ((before, "before it"), (during, "during it")):
        if share is not None and share > ALLOWED:
            return f"other work used {share:.0%} of the cores' time {when}"
    low, high = ratio_quartiles
    if high - low > SPREAD * ratio:
        return f"the ratio's quartiles, {low:.2f} and {high:.2f}, lie too far apart"
    return None
