"""Where the daemon's log goes, from which level on, and in which form.

Everything is written with ``twisted.logger``.  twistd takes the observer that :func:`make_log` gives (as a
component of the application), so that one set of observers serves Twisted's own lines too.  Text for
people, or one JSON object a line: ``ts level event msg`` and the fields that were logged by name.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Final, TextIO, cast

from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    LogEvent,
    LogLevel,
    LogLevelFilterPredicate,
    eventAsText,
    formatEvent,
    formatTime,
)
from zope.interface import implementer

#: Fields of an event that say how it was logged, not what happened.
_MACHINERY: Final = frozenset(
    {
        "format", "isError", "log_failure", "log_flattened", "log_format", "log_level", "log_logger",
        "log_namespace", "log_source", "log_system", "log_time", "log_trace", "log_legacy", "log_text", "message",
        "system", "time", "failure", "why", "logLevel",
    }
)  # fmt: skip


class Log:
    """The daemon's log: an observer, and its level, which may change while it runs."""

    def __init__(self, observer: ILogObserver, level: str) -> None:
        self._levels = LogLevelFilterPredicate()
        self.observer: ILogObserver = FilteringLogObserver(observer, [self._levels])
        self.level = level
        self.set_level(level)

    def set_level(self, level: str) -> None:
        """Write this level (debug, info, warn, error) and above."""
        self.level = level
        self._levels.setLogLevelForNamespace("", LogLevel.levelWithName(level))


def make_log(file: str, form: str, level: str) -> Log:
    """The log into ``file`` (``"-"`` is standard output), as ``text`` or ``json``, from ``level`` on."""
    stream = sys.stdout if file in ("", "-") else open(file, "a", buffering=1, encoding="utf-8")
    # The journal writes its own time before each line.
    stamped = not (stream is sys.stdout and "JOURNAL_STREAM" in os.environ)
    observer = JsonLines(stream) if form == "json" else TextLines(stream, stamped)
    return Log(cast(ILogObserver, observer), level)


@implementer(ILogObserver)
class TextLines:
    """One line an event: time, level where it matters, namespace, message; a traceback below."""

    def __init__(self, stream: TextIO, stamped: bool) -> None:
        self._stream = stream
        self._stamped = stamped

    def __call__(self, event: LogEvent) -> None:
        """Write one event."""
        text = eventAsText(event, includeTimestamp=False, includeSystem=False)
        if not text:
            return
        level = event.get("log_level")
        name = "" if level in (None, LogLevel.info) else f"{level.name}: "
        time = f"{formatTime(event.get('log_time'))} " if self._stamped else ""
        system = str(event.get("log_namespace", "-")).removeprefix("p2psipd.")
        if system == "log_legacy" or system.startswith("twisted."):
            system = "twisted"
        self._stream.write(f"{time}[{system}] {name}{text}\n".replace("\x00", "\\0"))
        self._stream.flush()


@implementer(ILogObserver)
class JsonLines:
    """One JSON object an event."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, event: LogEvent) -> None:
        """Write one event."""
        level = event.get("log_level")
        record: dict[str, Any] = {
            "ts": formatTime(event.get("log_time")),
            "level": "info" if level is None else level.name,
            "event": str(event.get("log_namespace", "-")),
            "msg": formatEvent(event),
        }
        failure = event.get("log_failure")
        if failure is not None:
            record["traceback"] = failure.getTraceback()
        for name, value in event.items():
            if name not in _MACHINERY and name not in record:
                record[name] = value if isinstance(value, bool | int | float | str | None) else str(value)
        self._stream.write(json.dumps(record) + "\n")
        self._stream.flush()
