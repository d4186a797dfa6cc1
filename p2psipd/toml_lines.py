"""Where each key of a TOML file stands, which ``tomllib`` does not tell.

:func:`key_lines` walks a text that ``tomllib`` has already accepted, so it decides nothing about validity:
it only keeps up with keys, tables, arrays and strings well enough to count lines. Its test compares its key
paths with those that ``tomllib`` finds in the same text.
"""

from __future__ import annotations

import tomllib

KeyPath = tuple[str | int, ...]

_BARE_END = frozenset(" \t\r\n#,]}")
_KEY_END = frozenset(" \t\r\n.=]")


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line (from 1) of every key path in ``text``, a valid TOML document.

    A path's parts are keys and, for elements of arrays, indices: ``("peer", "bootstrap", 0)``.
    """
    scanner = _Scanner(text)
    scanner.document()
    return scanner.lines


class _Scanner:
    """A cursor over a valid TOML text."""

    def __init__(self, text: str) -> None:
        self.lines: dict[KeyPath, int] = {}
        self._text = text
        self._at = 0
        self._line = 1
        self._counted = 0
        #: Elements so far of each array of tables.
        self._tables: dict[KeyPath, int] = {}

    def document(self) -> None:
        """The whole text: table headers and ``key = value`` lines."""
        table: KeyPath = ()
        while self._space(newlines=True):
            if self._text.startswith("[[", self._at):
                table = self._header(2)
            elif self._text[self._at] == "[":
                table = self._header(1)
            else:
                self._pair(table)

    def _header(self, brackets: int) -> KeyPath:
        self._at += brackets
        keys = self._key()
        self._space()
        self._at += brackets
        path: KeyPath = ()
        for position, key in enumerate(keys, 1):
            path += (key,)
            self._note(path)
            if brackets == 2 and position == len(keys):
                self._tables[path] = self._tables.get(path, 0) + 1
            if path in self._tables:
                path += (self._tables[path] - 1,)
                self._note(path)
        return path

    def _pair(self, table: KeyPath) -> None:
        path = table
        for key in self._key():
            path += (key,)
            self._note(path)
        self._space()
        self._at += 1  # the equals sign
        self._space()
        self._value(path)

    def _key(self) -> list[str]:
        """A dotted key."""
        parts = []
        while True:
            self._space()
            start = self._at
            if self._text[start] in "\"'":
                self._string()
                parts.append(next(iter(tomllib.loads(f"{self._text[start : self._at]} = 0"))))
            else:
                while self._text[self._at] not in _KEY_END:
                    self._at += 1
                parts.append(self._text[start : self._at])
            self._space()
            if self._text[self._at] != ".":
                return parts
            self._at += 1

    def _value(self, path: KeyPath) -> None:
        first = self._text[self._at]
        if first in "\"'":
            self._string()
        elif first == "[":
            self._array(path)
        elif first == "{":
            self._inline_table(path)
        else:
            while self._at < len(self._text) and self._text[self._at] not in _BARE_END:
                self._at += 1

    def _array(self, path: KeyPath) -> None:
        self._at += 1
        index = 0
        while self._space(newlines=True) and self._text[self._at] != "]":
            self._note((*path, index))
            self._value((*path, index))
            index += 1
            self._space(newlines=True)
            self._at += self._text[self._at] == ","
        self._at += 1

    def _inline_table(self, path: KeyPath) -> None:
        self._at += 1
        while self._space(newlines=True) and self._text[self._at] != "}":
            self._pair(path)
            self._space(newlines=True)
            self._at += self._text[self._at] == ","
        self._at += 1

    def _string(self) -> None:
        quote = self._text[self._at]
        if self._text.startswith(quote * 3, self._at):
            self._at += 3
            while not self._text.startswith(quote * 3, self._at):
                self._at += 2 if quote == '"' and self._text[self._at] == "\\" else 1
            self._at += 3
            # Up to two quotation marks may stand directly before the closing three.
            while self._text.startswith(quote, self._at):
                self._at += 1
            return
        self._at += 1
        while self._text[self._at] != quote:
            self._at += 2 if quote == '"' and self._text[self._at] == "\\" else 1
        self._at += 1

    def _space(self, newlines: bool = False) -> bool:
        """Pass over blanks (and, if asked, line ends and comments); False at the end of the text."""
        blank = " \t\r\n" if newlines else " \t"
        while self._at < len(self._text):
            character = self._text[self._at]
            if character in blank:
                self._at += 1
            elif newlines and character == "#":
                end = self._text.find("\n", self._at)
                self._at = len(self._text) if end < 0 else end
            else:
                return True
        return False

    def _note(self, path: KeyPath) -> None:
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = max(self._counted, self._at)
        self.lines.setdefault(path, self._line)
