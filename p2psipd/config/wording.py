"""What pydantic finds at fault, in words that say what was expected."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from p2psipd.config.faults import Fault, line_of
from p2psipd.config.model import NodeConfig
from p2psipd.toml_lines import KeyPath

_EXPECTED = {
    "bool_type": "expected true or false",
    "int_type": "expected an integer",
    "float_type": "expected a number",
    "string_type": "expected a string",
    "tuple_type": "expected a list",
    "list_type": "expected a list",
    "model_type": "expected a table",
    "string_too_short": "expected a string that is not empty",
    "too_short": "expected at least one element",
}


def fault_of(
    file: str, lines: Mapping[KeyPath, int], detail: ErrorDetails, root: type[BaseModel] = NodeConfig
) -> Fault:
    """pydantic's error as a :class:`Fault`, in words that say what was expected.

    ``root`` is the model of the whole file.
    """
    path = _known_part(lines, detail)
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        message = "unknown key" + _suggestion(str(path[-1]), _siblings(path[:-1], root))
    elif kind == "missing":
        message = "missing; expected this table" if len(path) == 1 else "missing; expected this key"
    elif kind in ("greater_than", "greater_than_equal"):
        bound = context.get("gt", context.get("ge"))
        message = f"expected a number {'above' if kind == 'greater_than' else 'of at least'} {bound}"
    elif kind in ("less_than", "less_than_equal"):
        message = f"expected a number of at most {context.get('le', context.get('lt'))}"
    elif kind == "literal_error":
        message = f"expected {context['expected']}".replace("'", '"')
        message += _suggestion(str(detail["input"]), _literals(path, root))
    else:
        message = _EXPECTED.get(kind, detail["msg"])
    return Fault(file, line_of(lines, path), _dotted(path), message)


def _known_part(lines: Mapping[KeyPath, int], detail: ErrorDetails) -> KeyPath:
    """The error's path without the names pydantic adds for the branches of a union."""
    path = tuple(detail["loc"])
    if detail["type"] == "missing":
        return path
    while len(path) > 1 and path not in lines:
        path = path[:-1]
    return path


def _dotted(path: KeyPath) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text


def _section_at(path: KeyPath, root: type[BaseModel] = NodeConfig) -> type[BaseModel] | None:
    section: type[BaseModel] | None = root
    for part in path:
        if isinstance(part, int):
            continue
        field = section.model_fields.get(str(part)) if section is not None else None
        candidates = (field.annotation, *get_args(field.annotation)) if field is not None else ()
        section = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
    return section


def _siblings(path: KeyPath, root: type[BaseModel] = NodeConfig) -> list[str]:
    section = _section_at(path, root)
    return list(section.model_fields) if section is not None else []


def _literals(path: KeyPath, root: type[BaseModel] = NodeConfig) -> list[str]:
    """The words allowed at ``path``."""
    names = [part for part in path if isinstance(part, str)]
    section = _section_at(tuple(names[:-1]), root)
    field = section.model_fields.get(names[-1]) if section is not None else None
    pending: list[Any] = [field.annotation if field is not None else None]
    words: list[str] = []
    while pending:
        annotation = pending.pop()
        words += [annotation] if isinstance(annotation, str) else []
        pending += get_args(annotation)
    return words


def _suggestion(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f'. Did you mean "{near[0]}"?' if near else ""
