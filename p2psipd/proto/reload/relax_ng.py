"""RELAX NG (ISO/IEC 19757-2) in its XML syntax, as far as the grammar of the overlay's document uses it.

The algorithm is that of derivatives (James Clark, "An algorithm for RELAX NG validation"): the derivative of a pattern
by a start tag, an attribute or a text is the pattern of what may follow it. A document is valid if the pattern that is
left at its end may be empty. Patterns are kept once each, so that equal ones are the same object and derivatives by
start tags are remembered: a long list costs no more for each element than a short one.

Supported are element, attribute, text, empty, data with minInclusive and maxInclusive, value (token), choice, group,
interleave, optional, zeroOrMore, oneOrMore, ref, define with combine, name, anyName, nsName and except.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import reduce
from typing import Any, Final

from p2psipd.proto.reload.xml_tree import Element, parse_xml

NAMESPACE: Final = "http://relaxng.org/ns/structure/1.0"

Names = Callable[[str], bool]
_Check = Callable[[str], bool]


class Pattern:
    """A pattern: its ``form``, up to two patterns inside, whether it may be empty, and what is particular to the form:
    the names of an element or attribute, the check of a text, the content of an element.
    """

    __slots__ = ("content", "first", "form", "matches", "nullable", "second")

    def __init__(
        self,
        form: str,
        first: Any = None,
        second: Any = None,
        *,
        nullable: bool = False,
        matches: Callable[[str], bool] = lambda _: False,
        content: Callable[[], Pattern] | None = None,
    ) -> None:
        self.form = form
        self.first = first
        self.second = second
        self.nullable = nullable
        self.matches = matches
        self.content = content


_NOTHING: Final = Pattern("notAllowed")
_EMPTY: Final = Pattern("empty", nullable=True)
_TEXT: Final = Pattern("text", nullable=True)


class Grammar:
    """A grammar, read from its XML; ``faults`` judges a document."""

    def __init__(self, schema: bytes) -> None:
        self._once: dict[tuple[str, Pattern, Pattern | None], Pattern] = {}
        self._opened: dict[tuple[Pattern, str], Pattern] = {}
        self._closed: dict[Pattern, Pattern] = {}
        self._start = _Reading(schema, self).start()

    def faults(self, root: Element) -> list[tuple[int, str]]:
        """(line, text) of what is not as the grammar demands, in document order; empty for a valid document."""
        faults: list[tuple[int, str]] = []
        self._element(self._start, root, faults)
        return faults

    # -- patterns put together, the simplest that means the same ---------------------------------------------

    def choice(self, first: Pattern, second: Pattern) -> Pattern:
        """One or the other."""
        if first is _NOTHING or first is second:
            return second
        if second is _NOTHING:
            return first
        other = second
        while other.form == "choice":
            if other.first is first or other.second is first:
                return second
            other = other.second
        return self._made("choice", first, second, first.nullable or second.nullable)

    def both(self, form: str, first: Pattern, second: Pattern) -> Pattern:
        """Both, one after the other ("group") or mixed ("interleave")."""
        if first is _NOTHING or second is _NOTHING:
            return _NOTHING
        if first is _EMPTY:
            return second
        if second is _EMPTY:
            return first
        return self._made(form, first, second, first.nullable and second.nullable)

    def one_or_more(self, inside: Pattern) -> Pattern:
        """At least once."""
        if inside is _NOTHING or inside is _EMPTY:
            return inside
        return self._made("oneOrMore", inside, None, inside.nullable)

    def _after(self, inside: Pattern, then: Pattern) -> Pattern:
        """The rest of an open element, then what follows its end tag."""
        return _NOTHING if inside is _NOTHING or then is _NOTHING else self._made("after", inside, then, False)

    def _made(self, form: str, first: Pattern, second: Pattern | None, nullable: bool) -> Pattern:
        found = self._once.get((form, first, second))
        if found is None:
            found = self._once[form, first, second] = Pattern(form, first, second, nullable=nullable)
        return found

    # -- derivatives -----------------------------------------------------------------------------------------

    def _open(self, pattern: Pattern, name: str) -> Pattern:
        """By the name of a start tag: choices of what is left of that element and of what follows it."""
        found = self._opened.get((pattern, name))
        if found is None:
            found = self._opened[pattern, name] = self._open_anew(pattern, name)
        return found

    def _open_anew(self, pattern: Pattern, name: str) -> Pattern:
        form, first, second = pattern.form, pattern.first, pattern.second
        if form == "element":
            if not pattern.matches(name) or pattern.content is None:
                return _NOTHING
            return self._after(pattern.content(), _EMPTY)
        if form == "choice":
            return self.choice(self._open(first, name), self._open(second, name))
        if form == "oneOrMore":
            again = self.choice(pattern, _EMPTY)
            return self._followed(self._open(first, name), lambda rest: self.both("group", rest, again))
        if form == "after":
            return self._followed(self._open(first, name), lambda rest: self._after(rest, second))
        if form not in ("group", "interleave"):
            return _NOTHING
        left = self._followed(self._open(first, name), lambda rest: self.both(form, rest, second))
        if form == "group":
            return self.choice(left, self._open(second, name)) if first.nullable else left
        right = self._followed(self._open(second, name), lambda rest: self.both(form, first, rest))
        return self.choice(left, right)

    def _followed(self, pattern: Pattern, change: Callable[[Pattern], Pattern]) -> Pattern:
        """With what comes after the open element changed."""
        if pattern.form == "after":
            return self._after(pattern.first, change(pattern.second))
        if pattern.form == "choice":
            return self.choice(self._followed(pattern.first, change), self._followed(pattern.second, change))
        return _NOTHING

    def _attribute(self, pattern: Pattern, name: str, value: str) -> Pattern:
        """By an attribute, which may stand anywhere among its siblings."""
        if pattern.form == "attribute":
            good = pattern.matches(name) and self._accepts(pattern.first, value)
            return _EMPTY if good else _NOTHING
        return self._inside(pattern, lambda part: self._attribute(part, name, value), ordered=False)

    def _text(self, pattern: Pattern, text: str) -> Pattern:
        """By a text."""
        if pattern.form == "text":
            return pattern
        if pattern.form == "data":
            return _EMPTY if pattern.matches(text) else _NOTHING
        return self._inside(pattern, lambda part: self._text(part, text), ordered=True)

    def _inside(self, pattern: Pattern, derive: Callable[[Pattern], Pattern], *, ordered: bool) -> Pattern:
        """The derivative of a composed pattern by what is one item for all its parts."""
        form, first, second = pattern.form, pattern.first, pattern.second
        if form == "choice":
            return self.choice(derive(first), derive(second))
        if form == "after":
            return self._after(derive(first), second)
        if form == "oneOrMore":
            return self.both("group", derive(first), self.choice(pattern, _EMPTY))
        if form not in ("group", "interleave"):
            return _NOTHING
        left = self.both(form, derive(first), second)
        if form == "group" and ordered:
            return self.choice(left, derive(second)) if first.nullable else left
        return self.choice(left, self.both(form, first, derive(second)))

    def _close(self, pattern: Pattern) -> Pattern:
        """By the end of a start tag: attributes that are still expected are missing."""
        found = self._closed.get(pattern)
        if found is None:
            found = self._closed[pattern] = self._close_anew(pattern)
        return found

    def _close_anew(self, pattern: Pattern) -> Pattern:
        form, first, second = pattern.form, pattern.first, pattern.second
        if form == "attribute":
            return _NOTHING
        if form == "choice":
            return self.choice(self._close(first), self._close(second))
        if form in ("group", "interleave"):
            return self.both(form, self._close(first), self._close(second))
        if form == "oneOrMore":
            return self.one_or_more(self._close(first))
        return self._after(self._close(first), second) if form == "after" else pattern

    def _end(self, pattern: Pattern, *, whatever: bool = False) -> Pattern:
        """By an end tag; with ``whatever`` as if the element's content had been as it should."""
        if pattern.form == "choice":
            either = (self._end(part, whatever=whatever) for part in (pattern.first, pattern.second))
            return self.choice(*either)
        if pattern.form == "after" and (whatever or pattern.first.nullable):
            following: Pattern = pattern.second
            return following
        return _NOTHING

    # -- a document ------------------------------------------------------------------------------------------

    def _accepts(self, pattern: Pattern, value: str) -> bool:
        """Whether the value of an attribute is one of ``pattern``."""
        return (pattern.nullable and not value.strip()) or self._text(pattern, value).nullable

    def _element(self, pattern: Pattern, element: Element, faults: list[tuple[int, str]]) -> Pattern:
        """What may follow an element. After a fault the judgement goes on as if it were not there."""
        name = element.tag.rpartition("}")[2]
        rest = self._open(pattern, element.tag)
        if rest is _NOTHING:
            faults.append((element.line, f"element {name} is not expected here"))
            return pattern
        for key, value in element.attributes.items():
            further = self._attribute(rest, key, value)
            if further is _NOTHING:
                faults.append((element.line, f"{name}: attribute {key} is not expected, or not with this value"))
            else:
                rest = further
        inside = self._close(rest)
        if inside is _NOTHING:
            faults.append((element.line, f"{name}: an attribute is missing"))
            return self._end(rest, whatever=True)
        before = len(faults)
        inside = self._children(inside, element, faults)
        following = self._end(inside)
        if following is not _NOTHING:
            return following
        if len(faults) == before:
            faults.append((element.line, f"{name}: its content is not complete, or not what is expected"))
        return self._end(inside, whatever=True)

    def _children(self, pattern: Pattern, element: Element, faults: list[tuple[int, str]]) -> Pattern:
        """What is left of an element's pattern after its content."""
        name = element.tag.rpartition("}")[2]
        alone = not any(True for _ in element)
        for child in element.children or [""]:
            if isinstance(child, Element):
                pattern = self._element(pattern, child, faults)
                continue
            blank = not child.strip()
            if blank and not alone:
                continue
            further = self._text(pattern, child)
            if blank:
                further = self.choice(pattern, further)
            if further is _NOTHING:
                faults.append((element.line, f"{name}: text {' '.join(child.split())[:80]!r} is not expected"))
            else:
                pattern = further
        return pattern


class _Reading:
    """The XML of a grammar on its way into patterns."""

    def __init__(self, schema: bytes, grammar: Grammar) -> None:
        self._root, self._prefixes = parse_xml(schema)
        self._grammar = grammar
        self._defined: dict[str, Pattern] = {}
        self._contents: dict[Element, Pattern] = {}

    def start(self) -> Pattern:
        (start,) = self._root.named(_tag("start"))
        return self._all(start, self._root.attributes.get("ns", ""))

    def _all(self, element: Element, ns: str, form: str = "group", skip: int = 0) -> Pattern:
        """All children of an element as one pattern, but for the first ``skip``."""
        parts = [self._pattern(child, ns) for child in list(element)[skip:]]
        return self._joined(form, parts)

    def _joined(self, form: str, parts: Iterable[Pattern]) -> Pattern:
        ordered = list(parts)
        if form == "choice":
            return reduce(self._grammar.choice, ordered, _NOTHING)
        return reduce(lambda rest, part: self._grammar.both(form, part, rest), reversed(ordered), _EMPTY)

    def _pattern(self, element: Element, ns: str) -> Pattern:
        ns = element.attributes.get("ns", ns)
        form = element.tag.removeprefix(_tag(""))
        if form in ("element", "attribute"):
            return self._named(form, element, ns)
        if form == "ref":
            return self._definition(element.attributes.get("name", ""))
        if form in ("choice", "group", "interleave"):
            return self._all(element, ns, form)
        if form in ("optional", "zeroOrMore", "oneOrMore"):
            inside = self._all(element, ns)
            if form != "optional":
                inside = self._grammar.one_or_more(inside)
            return inside if form == "oneOrMore" else self._grammar.choice(inside, _EMPTY)
        if form == "data":
            return Pattern("data", matches=_data(element))
        if form == "value":
            return Pattern("data", matches=_value(element.text()))
        return {"text": _TEXT, "empty": _EMPTY}[form]

    def _definition(self, name: str) -> Pattern:
        """All definitions of a name, combined."""
        if name not in self._defined:
            found = [one for one in self._root.named(_tag("define")) if one.attributes.get("name", "") == name]
            combine = next((form for one in found if (form := one.attributes.get("combine", ""))), "group")
            ns = self._root.attributes.get("ns", "")
            self._defined[name] = self._joined(combine, [self._all(one, ns) for one in found])
        return self._defined[name]

    def _named(self, form: str, element: Element, ns: str) -> Pattern:
        """An element, whose content is read when it is first met (it may hold itself), or an attribute."""
        given = element.attributes.get("name", "")
        first, *_ = [*element, None]
        if given:
            names: Names = self._name(given, ns).__eq__
        else:
            assert first is not None, "the schema names what it describes"
            names = _names(first, ns)
        skip = 0 if given else 1
        if form == "attribute":
            content = self._all(element, ns, skip=skip) if len(list(element)) > skip else _TEXT
            return Pattern(form, content, matches=names)

        def inside() -> Pattern:
            if element not in self._contents:
                self._contents[element] = self._all(element, ns, skip=skip)
            return self._contents[element]

        return Pattern(form, matches=names, content=inside)

    def _name(self, given: str, ns: str) -> str:
        prefix, colon, local = given.rpartition(":")
        namespace = self._prefixes[prefix] if colon else ns
        return f"{{{namespace}}}{local}" if namespace else local


def _tag(name: str) -> str:
    return f"{{{NAMESPACE}}}{name}"


def _names(element: Element, ns: str) -> Names:
    """What a class of names takes in."""
    ns = element.attributes.get("ns", ns)
    excepted = [_names(one, ns) for part in element.named(_tag("except")) for one in part]
    prefix = f"{{{ns}}}"
    if element.tag == _tag("nsName"):
        return lambda name: name.startswith(prefix) if ns else not name.startswith("{")
    return lambda name: not any(matches(name) for matches in excepted)


def _value(expected: str) -> _Check:
    words = expected.split()
    return lambda text: text.split() == words


def _within(least: float, most: float) -> _Check:
    def check(text: str) -> bool:
        return re.fullmatch(r"[+-]?[0-9]{1,30}", text, re.ASCII) is not None and least <= int(text) <= most

    return check


def _is_time(text: str) -> bool:
    if not re.fullmatch(r"[0-9]{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?", text, re.ASCII):
        return False
    try:
        datetime.fromisoformat(re.sub(r"\.\d+", "", text))
    except ValueError:
        return False
    return True


def _is_base64(text: str) -> bool:
    packed = "".join(text.split())
    return len(packed) % 4 == 0 and re.fullmatch(r"[A-Za-z0-9+/]*={0,2}", packed) is not None


#: Of a reference without scheme the first segment has no colon (RFC 3986 section 4.2).
_URI: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:|[^:/?#]*(?=[/?#]|$))[^\s<>\"{}|\\^`]*")

#: What the datatypes of XML Schema that the grammar names take, white space collapsed.
_TYPES: Final[Mapping[str, _Check]] = {
    "string": lambda text: True,
    "anyURI": lambda text: _URI.fullmatch(text) is not None,
    "boolean": lambda text: text in ("true", "false", "1", "0"),
    "base64Binary": _is_base64,
    "dateTime": _is_time,
    "long": _within(-(2**63), 2**63 - 1),
    "int": _within(-(2**31), 2**31 - 1),
    "unsignedInt": _within(0, 2**32 - 1),
    "unsignedByte": _within(0, 255),
}


def _data(element: Element) -> _Check:
    """The check of a datatype with its parameters."""
    check = _TYPES[element.attributes.get("type", "")]
    bounds = {param.attributes.get("name", ""): float(param.text()) for param in element.named(_tag("param"))}
    within = _within(bounds.get("minInclusive", float("-inf")), bounds.get("maxInclusive", float("inf")))

    def collapsed(text: str) -> bool:
        text = " ".join(text.split())
        return check(text) and (not bounds or within(text))

    return collapsed
