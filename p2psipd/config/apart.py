"""Work that is done in a child process, so that what it needs does not stay in this one."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar, cast

T = TypeVar("T")


def apart(work: Callable[[], T]) -> T:
    """What ``work`` returns, done in a forked child: its imports and its garbage end with it.

    Only for a process that has no threads yet. Where there is no child to be had, or it fails, the work is done here.
    """
    try:
        reading, writing = os.pipe()
        child = os.fork()
    except OSError:
        return work()
    if child == 0:
        _work_and_end(work, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        content = stream.read()
    _, status = os.waitpid(child, 0)
    # It is our own child that says so, over a pipe that nobody else has.
    return cast(T, pickle.loads(content)) if status == 0 else work()


def _work_and_end(work: Callable[[], object], writing: int) -> None:
    """The child: no handler and no buffer of its parent is to see its end, whatever that is."""
    status = 1
    try:
        # A fault that is none of the work's results is met again, and told, where the parent does the work.
        with suppress(Exception), os.fdopen(writing, "wb") as stream:
            pickle.dump(work(), stream)
            stream.flush()
            status = 0
    finally:
        os._exit(status)
