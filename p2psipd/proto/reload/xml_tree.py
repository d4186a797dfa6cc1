"""XML as a tree of elements that know their lines, read by expat: the little that the overlay's document needs.

Comments and processing instructions are left out. Entities other than XML's own five and DOCTYPE are refused, so a
document cannot grow while it is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from xml.parsers import expat

_MAXIMUM_DEPTH = 32


class XmlError(ValueError):
    """What was read is no such XML; ``line`` is where."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


class Element:
    """An element: ``tag`` is "{namespace}name" or, without a namespace, "name"; attributes are named likewise.

    ``children`` are elements and the texts between them.
    """

    __slots__ = ("attributes", "children", "line", "tag")

    def __init__(self, tag: str, attributes: Mapping[str, str], line: int) -> None:
        self.tag = tag
        self.attributes = attributes
        self.line = line
        self.children: list[Element | str] = []

    def __iter__(self) -> Iterator[Element]:
        return (child for child in self.children if isinstance(child, Element))

    def named(self, tag: str) -> Iterator[Element]:
        """The child elements with this tag."""
        return (child for child in self if child.tag == tag)

    def text(self) -> str:
        """All text in the element and in those inside it."""
        return "".join(child if isinstance(child, str) else child.text() for child in self.children)


def parse_xml(document: bytes) -> tuple[Element, Mapping[str, str]]:
    """The root element, and the namespaces of the prefixes that are declared anywhere; XmlError."""
    builder = _Builder()
    try:
        builder.parser.Parse(document, True)
    except expat.ExpatError as error:
        text = expat.errors.messages.get(error.code, str(error))
        raise XmlError(error.lineno, f"not well-formed XML: {text}") from None
    (root,) = builder.top
    return root, builder.prefixes


class _Builder:
    """What expat calls."""

    def __init__(self) -> None:
        self.prefixes: dict[str, str] = {}
        self.top = Element("", {}, 0)
        self._open = [self.top]
        self.parser = expat.ParserCreate(namespace_separator=" ")
        self.parser.buffer_text = True
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.parser.StartNamespaceDeclHandler = self._declared
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text

    def _doctype(self, *ignored: object) -> None:
        raise XmlError(self.parser.CurrentLineNumber, "a DOCTYPE is not permitted")

    def _declared(self, prefix: str | None, namespace: str | None) -> None:
        self.prefixes[prefix or ""] = namespace or ""

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        line = self.parser.CurrentLineNumber
        if len(self._open) > _MAXIMUM_DEPTH:
            raise XmlError(line, f"elements nested more than {_MAXIMUM_DEPTH} deep")
        element = Element(_braced(name), {_braced(key): value for key, value in attributes.items()}, line)
        self._open[-1].children.append(element)
        self._open.append(element)

    def _end(self, name: str) -> None:
        self._open.pop()

    def _text(self, text: str) -> None:
        children = self._open[-1].children
        # A comment between two texts parts them for expat only.
        if children and isinstance(children[-1], str):
            children[-1] += text
        else:
            children.append(text)


def _braced(name: str) -> str:
    """expat's "namespace name" as "{namespace}name"."""
    namespace, space, local = name.rpartition(" ")
    return f"{{{namespace}}}{local}" if space else local
