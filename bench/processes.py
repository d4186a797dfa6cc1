"""Ending foreign programs that fork."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress

#: Seconds that a program has to end in good order.
_PATIENCE = 10.0


def end(process: subprocess.Popen[bytes]) -> None:
    """End a program that was started in a session of its own, and whatever it has forked.

    Kamailio's main process that is told to end while it still forks waits for ever for children that were not told.
    """
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_PATIENCE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
