"""How runs end: with the process that started them, and within seconds when they are told to.

    with endable(): ...                      # SIGTERM, Ctrl-C and the death of the parent are one KeyboardInterrupt
    python lib/records/ending.py PID script.py --profile quick      # a script or module that ends when process PID does

Whoever wants a run to go on alone starts it with `nohup` or `setsid`.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil

LOOK = 0.5  # seconds from one look at the parent to the next
GRACE = 4.0  # seconds for putting results back, after which the process ends whatever it does
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TOLD: set[int] = set()  # processes of ours that put results back when they are told to end, and end what they started


@contextlib.contextmanager
def endable(parent: int | None = None) -> Iterator[None]:
    """Let signals, and the death of the parent, end all processes that this one starts in the block, at once, and then
    the block with a `KeyboardInterrupt`. What they have finished is on the disk. Only the main thread hears signals.
    parent: as for `following`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    others = {child.pid for child in psutil.Process().children(recursive=True)}
    timer = threading.Timer(GRACE, os._exit, (1,))
    timer.daemon = True

    def stop(number: int, frame) -> None:
        for heard in handlers:
            signal.signal(heard, signal.SIG_IGN)  # once is enough, and what follows is to be finished
        timer.start()
        end_children(others | told())
        raise KeyboardInterrupt

    # What is ignored stays so: SIGHUP by nohup, SIGINT by a shell for what runs in the background.
    handlers = {number: now for number in SIGNALS if (now := signal.getsignal(number)) != signal.SIG_IGN}
    for number in handlers:
        signal.signal(number, stop)

    def orphaned() -> None:
        print("what started this has gone; nohup or setsid lets a run go on alone", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)

    try:
        with following(orphaned, parent):
            yield
    finally:
        timer.cancel()
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def following(end: Callable[[], object], parent: int | None = None) -> Iterator[None]:
    """Call `end` in a thread when the parent of this process is gone. That is `parent`, or else whatever it is now, but
    of what `nohup` or `setsid` has started."""
    detached = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN or os.getsid(0) == os.getpid()
    alone, over = parent is None and detached, threading.Event()
    parent = parent or os.getppid()

    def watch() -> None:
        while not over.wait(LOOK):
            if os.getppid() != parent:
                return end()

    if not alone:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def told() -> set[int]:
    """Tell those of `TOLD` to end; their numbers, and those of what they started, which is theirs to end."""
    found = set(TOLD)
    for pid in TOLD:
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            found |= {child.pid for child in psutil.Process(pid).children(recursive=True)}
            os.kill(pid, signal.SIGTERM)
    return found


def end_all() -> None:
    """End this process and all that it started, now."""
    end_children()
    os._exit(1)


def end_children(but: Iterable[int] = ()) -> None:
    """Kill all processes that this one started, and theirs, but those of these numbers."""
    for child in psutil.Process().children(recursive=True):
        if child.pid in but:
            continue
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def child(*words: str) -> list[str]:
    """The command for a script or module with its arguments that ends when this process does."""
    return [sys.executable, __file__, str(os.getpid()), *words]  # by its path: an audit's tree may be older than it


def start_quickly() -> None:
    """Spare this process the grammar of URIs that `jsonschema` builds, for a second or more, when a notebook or a chart
    imports it: nothing here is one."""
    sys.modules.setdefault("rfc3987_syntax", None)


def main(parent: str, what: str, *words: str) -> None:
    """Run a script by its path, or a module by its name, as Python does, but for `start_quickly`."""
    sys.argv = [what, *words]
    start_quickly()
    with following(end_all, int(parent)):
        sys.path[0] = str(Path(what).resolve().parent) if what.endswith(".py") else os.getcwd()
        if what.endswith(".py"):
            runpy.run_path(what, run_name="__main__")
        else:
            runpy.run_module(what, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
