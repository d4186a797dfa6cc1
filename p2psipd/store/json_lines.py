"""A file of JSON lines that is appended to without ever making the caller wait for the disk."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import Final

BACKLOG: Final = 10_000
"""Lines that may wait for the disk; further ones are lost, and counted."""


class JsonLines:
    """Appends lines to the file `path`, in batches, on a thread.

    `in_thread(work, done)` runs `work` elsewhere and then calls `done(fault)` here, with None or the OSError that it
    ended with; while one batch is under way the next one gathers. A file that has reached `max_octets` becomes
    `path`.1, in the place of the one before (0: it grows without end). After `reopen()` the next batch goes to a file
    opened anew, for whoever renames it (logrotate). `lost` counts the lines that could not be kept, `fault` is the last
    batch's error ("" when it was written).
    """

    def __init__(
        self,
        path: str,
        in_thread: Callable[[Callable[[], None], Callable[[OSError | None], None]], None],
        max_octets: int = 0,
    ) -> None:
        self.path = path
        self.lost = 0
        self.fault = ""
        self._in_thread = in_thread
        self._max_octets = max_octets
        self._waiting: deque[str] = deque()
        self._writing: list[str] = []
        self._file: int | None = None
        self._reopen = False
        self._closing = False

    def append(self, line: str) -> None:
        """Write `line` (without its end) soon."""
        if len(self._waiting) >= BACKLOG:
            self.lost += 1
            return
        self._waiting.append(line)
        self._write_some()

    def reopen(self) -> None:
        """Open the file anew for what is written from now on."""
        self._reopen = True

    def close(self) -> None:
        """Write what waits, here and now, and close. A batch that is under way on its thread ends by itself."""
        self._closing = True
        if not self._writing:
            self._finish()

    def _finish(self) -> None:
        if self._waiting:
            self._writing = list(self._waiting)
            self._waiting.clear()
            try:
                self._write()
                self._done(None)
            except OSError as error:
                self._done(error)
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write_some(self) -> None:
        if self._waiting and not self._writing:
            self._writing = list(self._waiting)
            self._waiting.clear()
            self._in_thread(self._write, self._written)

    def _written(self, fault: OSError | None) -> None:
        self._done(fault)
        if self._closing:
            self._finish()
        else:
            self._write_some()

    def _done(self, fault: OSError | None) -> None:
        if fault is not None:
            self.lost += len(self._writing)
        self.fault = "" if fault is None else str(fault)
        self._writing = []

    def _write(self) -> None:
        """One batch; on the thread, while nothing else touches the file."""
        if self._reopen and self._file is not None:
            os.close(self._file)
            self._file = None
        self._reopen = False
        if self._file is None:
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        if self._max_octets and os.fstat(self._file).st_size >= self._max_octets:
            os.close(self._file)
            self._file = None
            os.replace(self.path, f"{self.path}.1")
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        data = "".join(f"{line}\n" for line in self._writing).encode("utf-8", "surrogateescape")
        written = os.write(self._file, data)
        while written < len(data):
            written += os.write(self._file, data[written:])
