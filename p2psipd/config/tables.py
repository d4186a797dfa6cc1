"""Tables of a TOML file as frozen dataclasses, whose annotations say what each key may hold.

:func:`read_table` makes such an object of what ``tomllib`` gives, or raises ConfigError with all faults at once, each
with its line and what was expected. Unknown keys are faults, and nothing is converted behind the writer's back: ``1``
is not ``true`` and ``"5"`` is no number.

An annotation is ``bool``, ``int``, ``float``, ``str``, a ``Literal`` of words, ``tuple[X, ...]`` or ``tuple[X, Y]``
(lists), ``dict[str, X]``, another table, any of these ``| None`` for a key that may be left out, or ``Annotated`` with
marks: :class:`Read`, :class:`Then`, :class:`Bounds`, :class:`Length`, :class:`Matches`.

Of the packages for this pydantic costs a process 9 MB, more than its records do. cattrs (0.9 MB, 25 ms of the start)
collects errors with their paths, but strict values, lists that are no strings, marks, words and the way from its errors
to keys have to be written for it all the same: that took 35 lines more than doing without it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from p2psipd.config.faults import ConfigError, Fault, line_of
from p2psipd.toml_lines import KeyPath

T = TypeVar("T")

_EXPECTED: Mapping[type, str] = {
    bool: "expected true or false",
    int: "expected an integer",
    float: "expected a number",
    str: "expected a string",
}


class Expected(ValueError):
    """A value is not what its key may hold; the message says what was expected."""


class Read(NamedTuple):
    """A mark: ``function`` makes the key's value of the file's, whatever that is. Raises Expected."""

    function: Callable[[object], object]


class Then(NamedTuple):
    """A mark: ``function`` checks or changes a value of the right type. Raises Expected."""

    function: Callable[[Any], object]


class Bounds(NamedTuple):
    """A mark for numbers: more than ``above``, at least ``least``, at most ``most``."""

    least: float | None = None
    most: float | None = None
    above: float | None = None

    def check(self, value: float) -> None:
        """Raises Expected, for a number that is none as well."""
        if self.above is not None and not value > self.above:
            raise Expected(f"expected a number above {self.above}")
        if self.least is not None and not value >= self.least:
            raise Expected(f"expected a number of at least {self.least}")
        if self.most is not None and not value <= self.most:
            raise Expected(f"expected a number of at most {self.most}")


class Length(NamedTuple):
    """A mark for strings and lists: how many characters or elements they have."""

    least: int = 0
    most: int | None = None

    def check(self, value: Sequence[object]) -> None:
        """Raises Expected."""
        text = isinstance(value, str)
        if len(value) < self.least:
            raise Expected("expected a string that is not empty" if text else "expected at least one element")
        if self.most is not None and len(value) > self.most:
            raise Expected(f"expected at most {self.most} {'characters' if text else 'elements'}")


class Matches(NamedTuple):
    """A mark for strings: the regular expression that all of it matches, and in words what is expected."""

    pattern: str
    expected: str

    def check(self, value: str) -> None:
        """Raises Expected."""
        if re.fullmatch(self.pattern, value) is None:
            raise Expected(self.expected)


def read_table(kind: type[T], values: object, file: str = "", lines: Mapping[KeyPath, int] | None = None) -> T:
    """The table ``kind`` made of ``values``, what ``tomllib`` read from ``file``; raises ConfigError.

    ``lines`` has the line of each key path.
    """
    reading = _Reading(file, lines or {})
    table: T = reading.table(kind, values, ())
    if reading.faults:
        raise ConfigError(reading.faults)
    return table


def place_of(fault: Fault) -> tuple[str, ...]:
    """Table and key of a fault, with the number of the table where there is a list of them; not what is inside the
    key's value."""
    parts = tuple(re.findall(r"[^.\[\]]+", fault.key))
    return parts[: 3 if parts[1:] and parts[1].isdigit() else 2]


def unsaid(found: Iterable[Fault], faults: Iterable[Fault]) -> list[Fault]:
    """What was found of keys that no fault is about yet, neither they nor their tables."""
    told = {place_of(fault) for fault in faults}
    return [fault for fault in found if not {place_of(fault), place_of(fault)[:1]} & told]


def without(values: Mapping[str, Any], faults: Iterable[Fault]) -> dict[str, Any]:
    """The values of a file without those that are at fault, so that what lies between the others can be checked."""
    kept: dict[str, Any] = copy.deepcopy(dict(values))
    for fault in faults:
        *way, last = place_of(fault)
        table: Any = kept
        for part in way:
            table = table[int(part)] if isinstance(table, list) else table.get(part, {})
        if isinstance(table, dict):
            table.pop(last, None)
    return kept


def table_of(annotation: object) -> type[Any] | None:
    """The table that an annotation names, be it of one or of a list of them."""
    if isinstance(annotation, type) and is_dataclass(annotation):
        return annotation
    return next((found for part in get_args(annotation) if (found := table_of(part)) is not None), None)


@cache
def keys_of(kind: type[Any]) -> Mapping[str, Any]:
    """The annotations of a table's keys; fields that begin with an underscore are none."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind) if field.name[0] != "_"}


class _Reading:
    """One file's values on their way into tables. What is returned beside a new fault is of no use."""

    def __init__(self, file: str, lines: Mapping[KeyPath, int]) -> None:
        self.faults: list[Fault] = []
        self._file = file
        self._lines = lines

    def table(self, kind: type[Any], values: object, path: KeyPath) -> Any:
        if not isinstance(values, dict):
            return self._fault(path, "expected a table")
        keys, before = keys_of(cast(Any, kind)), len(self.faults)
        given: dict[str, Any] = {}
        for key, value in values.items():
            if key in keys:
                given[key] = self._value(keys[key], value, (*path, key))
            else:
                self._fault((*path, key), "unknown key" + _suggestion(key, keys))
        for field in fields(kind):
            if field.name in keys and field.name not in given and field.default is field.default_factory is MISSING:
                what = "key" if table_of(keys[field.name]) is None else "table"
                self._fault((*path, field.name), f"missing; expected this {what}")
        return kind(**given) if len(self.faults) == before else None

    def _value(self, annotation: Any, value: object, path: KeyPath) -> Any:
        before = len(self.faults)
        base, *marks = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
        try:
            if marks and isinstance(marks[0], Read):
                value = marks.pop(0).function(value)
            else:
                value = self._plain(base, value, path)
            for mark in marks if len(self.faults) == before else ():
                if isinstance(mark, Then):
                    value = mark.function(value)
                else:
                    mark.check(value)
        except Expected as error:
            self._fault(path, str(error))
        return value

    def _plain(self, kind: Any, value: object, path: KeyPath) -> Any:
        """A value of a type without marks."""
        origin, inside = get_origin(kind), get_args(kind)
        if origin in (Union, UnionType):
            (kind,) = (part for part in inside if part is not NoneType)
            return self._value(kind, value, path)
        if origin is Literal:
            return self._word(inside, value, path)
        if origin is tuple:
            return self._list(inside, value, path)
        if origin is dict:
            return self._named(inside[1], value, path)
        if is_dataclass(kind):
            return self.table(kind, value, path)  # type: ignore[arg-type]
        if kind is float and type(value) is int:
            return float(value)
        return value if type(value) is kind else self._fault(path, _EXPECTED[kind])

    def _word(self, words: tuple[str, ...], value: object, path: KeyPath) -> Any:
        if value in words and isinstance(value, str):
            return value
        *others, last = (f'"{word}"' for word in words)
        text = f"{', '.join(others)} or {last}" if others else last
        return self._fault(path, f"expected {text}{_suggestion(str(value), words)}")

    def _list(self, inside: tuple[Any, ...], value: object, path: KeyPath) -> Any:
        if not isinstance(value, list | tuple):
            return self._fault(path, "expected a list")
        kinds = [inside[0]] * len(value) if inside[-1] is Ellipsis else inside
        if len(kinds) != len(value):
            return self._fault(path, f"expected a list of {len(kinds)} elements")
        elements = zip(kinds, value, strict=True)
        return tuple(self._value(kind, each, (*path, index)) for index, (kind, each) in enumerate(elements))

    def _named(self, kind: Any, value: object, path: KeyPath) -> Any:
        if not isinstance(value, dict):
            return self._fault(path, "expected a table")
        return {key: self._value(kind, each, (*path, key)) for key, each in value.items()}

    def _fault(self, path: KeyPath, message: str) -> None:
        self.faults.append(Fault(self._file, line_of(self._lines, path), _dotted(path), message))


def _dotted(path: KeyPath) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text


def _suggestion(word: str, known: Iterable[str]) -> str:
    import difflib  # late: only a fault needs it

    near = difflib.get_close_matches(word, list(known), n=1)
    return f'. Did you mean "{near[0]}"?' if near else ""
