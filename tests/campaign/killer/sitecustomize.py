"""Kills the process at one of its writes: Python imports this at its start where the folder is on the PYTHONPATH.

A window is opening a file to write, renaming one, or removing one, below the folder $WATCHED. Windows are counted over
all processes of a run, one character of the file $WINDOWS each; at number $KILL_AT the process that comes to it writes
half a word, where the window is a file being opened, and dies as if by `kill -9`.
"""

import os
import signal
import sys

WRITING = os.O_WRONLY | os.O_RDWR


def at_a_window(event, given):
    if event == "open":
        if not isinstance(given[0], (str, bytes, os.PathLike)) or not (given[2] or 0) & WRITING:
            return
    elif event not in ("os.rename", "os.remove"):
        return
    path = os.path.abspath(os.fsdecode(given[0]))
    if not path.startswith(watched) or path == counter or inside:
        return
    inside.append(path)
    with open(counter, "a") as file:
        file.write(".")
    if os.path.getsize(counter) == last:
        if event == "open" and given[2] & os.O_TRUNC:
            with open(path, "w") as file:
                file.write("hal")
        os.kill(os.getpid(), signal.SIGKILL)
    inside.clear()


if counter := os.environ.get("WINDOWS"):
    watched, last = os.environ["WATCHED"] + os.sep, int(os.environ.get("KILL_AT", -1))
    inside: list = []
    sys.addaudithook(at_a_window)
