"""Python in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def python(*arguments, status=0, cwd=None, input=None, **environment):
    """Run this interpreter with these arguments, and variables of the environment beside ours.

    status: with what it must end; None: with anything.  Returns the process that has ended, with
    its `returncode`, `stdout` and `stderr`.
    """
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        cwd=cwd,
        input=input,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert status in (None, done.returncode), done.stdout[-5000:] + done.stderr[-3000:]
    return done
