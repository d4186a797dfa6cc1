"""Faults of a configuration: where, which key, what was expected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from p2psipd.toml_lines import KeyPath

if TYPE_CHECKING:
    from p2psipd.config.model import NodeConfig

#: The exit code of a process whose configuration is at fault (sysexits.h EX_CONFIG).
EXIT_CONFIG = 78


class Fault(NamedTuple):
    """One thing wrong: where (``line`` is 0 when the key is nowhere in the file) and what was expected."""

    file: str
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.key}: {self.message}" if self.key else f"{place}: {self.message}"


class ConfigError(Exception):
    """The configuration is at fault; the message lists every fault, one a line.

    ``rest`` is the configuration without the keys that are at fault, if there is as much.
    """

    def __init__(self, faults: Iterable[Fault], rest: NodeConfig | None = None) -> None:
        self.faults = sorted(faults, key=lambda fault: (fault.file, fault.line))
        self.rest = rest
        super().__init__("\n".join(str(fault) for fault in self.faults))


def line_of(lines: Mapping[KeyPath, int], path: KeyPath) -> int:
    """The line of ``path``, else of the nearest table around it, else 0."""
    while path:
        if path in lines:
            return lines[path]
        path = path[:-1]
    return 0
