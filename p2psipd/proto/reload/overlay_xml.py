"""The XML beneath the overlay configuration document: exact octet ranges, grammar, typed elements.

Signatures cover exact octets (RFC 6940 section 11.1), which a parsed tree no longer knows.  So a document is
read twice: by expat, which tells where each signed element begins and ends, and by lxml, which checks it
against the grammar and gives the values.  Entities, DOCTYPE, network access and other encodings than UTF-8
are refused.
"""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

if TYPE_CHECKING:
    from pyexpat import XMLParserType

BASE: Final = "urn:ietf:params:xml:ns:p2p:config-base"
MAXIMUM_DOCUMENT_SIZE: Final = 256 * 1024
_MAXIMUM_DEPTH: Final = 32
_MAXIMUM_FAULTS: Final = 100

T = TypeVar("T")


class ConfigurationError(ValueError):
    """A document that is not acceptable.

    ``faults`` are (line, text), line 0 where a fault belongs to no line.  ``reason`` is one word: ``form``,
    ``signature``, ``fingerprint``, ``sequence``, ``expired`` or ``unsupported``.
    """

    def __init__(self, *faults: tuple[int, str], reason: str = "form") -> None:
        super().__init__("\n".join(f"line {line}: {text}" if line else text for line, text in faults))
        self.faults = faults
        self.reason = reason


class Range(NamedTuple):
    """The octets of one element, from its first "<" to its last ">", and its text."""

    start: int
    end: int
    text: str

    def octets(self, document: bytes) -> bytes:
        """The element's exact octets."""
        return document[self.start : self.end]


class KindBlockRange(NamedTuple):
    """Where a kind-block is, its kind, and its signature if it has one."""

    whole: Range
    kind: Range
    signature: Range | None


class ConfigurationRange(NamedTuple):
    """Where a configuration is, its instance-name, kind-blocks, and the signatures that follow it."""

    whole: Range
    name: str
    kind_blocks: tuple[KindBlockRange, ...]
    signatures: tuple[Range, ...]


def locate(document: bytes) -> tuple[ConfigurationRange, ...]:
    """The octet ranges of all that is signed, in document order; ``ConfigurationError`` if it is not such
    XML.
    """
    if len(document) > MAXIMUM_DOCUMENT_SIZE:
        raise ConfigurationError((0, f"{len(document)} octets; at most {MAXIMUM_DOCUMENT_SIZE} expected"))
    try:
        document.decode()
    except UnicodeDecodeError as error:
        line = document.count(b"\n", 0, error.start) + 1
        raise ConfigurationError((line, "not UTF-8, which RFC 6940 section 11.1 demands")) from None
    from xml.parsers import expat  # late, as lxml below

    locator = _Locator(document, expat.ParserCreate(namespace_separator=" "))
    try:
        locator.parser.Parse(document, True)
    except expat.ExpatError as error:
        text = expat.errors.messages.get(error.code, str(error))
        raise ConfigurationError((error.lineno, f"not well-formed XML: {text}")) from None
    return locator.result()


_BLOCK_PATH: Final = ("overlay", "configuration", "required-kinds", "kind-block")
_NOTED: Final = frozenset(
    {
        _BLOCK_PATH[:2],
        _BLOCK_PATH,
        (*_BLOCK_PATH, "kind"),
        (*_BLOCK_PATH, "kind-signature"),
        ("overlay", "signature"),
    }
)


class _Locator:
    """Follows expat through a document and notes the ranges of the elements in ``_NOTED``."""

    def __init__(self, document: bytes, parser: XMLParserType) -> None:
        self._document = document
        self.parser = parser
        self._path: list[str] = []
        self._open: list[tuple[int, str, list[str]]] = []
        self._kinds: list[Range] = []
        self._kind_signatures: list[Range] = []
        self._blocks: list[KindBlockRange] = []
        self._found: list[tuple[Range, str, tuple[KindBlockRange, ...], list[Range]]] = []
        self.parser.buffer_text = True
        self.parser.XmlDeclHandler = self._declaration
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._characters

    def result(self) -> tuple[ConfigurationRange, ...]:
        return tuple(
            ConfigurationRange(whole, name, blocks, tuple(signatures))
            for whole, name, blocks, signatures in self._found
        )

    def _fault(self, text: str) -> ConfigurationError:
        return ConfigurationError((self.parser.CurrentLineNumber, text))

    def _declaration(self, version: str, encoding: str | None, standalone: int) -> None:
        if encoding is not None and encoding.lower() not in ("utf-8", "utf8"):
            raise self._fault(f"encoding {encoding}; UTF-8 expected")

    def _doctype(self, *ignored: object) -> None:
        raise self._fault("a DOCTYPE is not permitted")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if len(self._path) >= _MAXIMUM_DEPTH:
            raise self._fault(f"elements nested more than {_MAXIMUM_DEPTH} deep")
        namespace, _, local = name.rpartition(" ")
        self._path.append(local if namespace == BASE else name)
        if tuple(self._path) in _NOTED:
            self._open.append((self.parser.CurrentByteIndex, attributes.get("instance-name", ""), []))

    def _characters(self, text: str) -> None:
        if self._open and tuple(self._path) in _NOTED:
            self._open[-1][2].append(text)

    def _end(self, name: str) -> None:
        path = tuple(self._path)
        self._path.pop()
        if path not in _NOTED:
            return
        start, instance_name, text = self._open.pop()
        element = Range(start, self._end_of_element(start), "".join(text))
        match path[-1]:
            case "configuration":
                self._found.append((element, instance_name, tuple(self._blocks), []))
                self._blocks = []
            case "signature":
                if not self._found:
                    raise self._fault("a signature before the configuration that it signs")
                self._found[-1][3].append(element)
            case "kind":
                self._kinds.append(element)
            case "kind-signature":
                self._kind_signatures.append(element)
            case "kind-block":
                kinds, signatures = self._kinds, self._kind_signatures
                self._kinds, self._kind_signatures = [], []
                if len(kinds) != 1 or len(signatures) > 1:
                    raise self._fault("kind-block: one kind and one kind-signature expected")
                self._blocks.append(KindBlockRange(element, kinds[0], signatures[0] if signatures else None))

    def _end_of_element(self, start: int) -> int:
        """An end tag holds no ">" but its last; of an empty-element tag expat gives the start once more."""
        at = self.parser.CurrentByteIndex
        if at == start:
            return start + _empty_tag_length(self._document, start)
        return self._document.index(b">", at) + 1


def _empty_tag_length(document: bytes, start: int) -> int:
    match = _TAG.match(document, start)
    return match.end() - start if match else 0


# A tag in which ">" may stand inside a quoted attribute value.
_TAG: Final = re.compile(rb"<(?:[^\"'>]|\"[^\"]*\"|'[^']*')*>")


def tag_prefix(element: bytes) -> bytes:
    """The namespace prefix, with its colon, of the element that these octets begin with; empty for none."""
    match = re.match(rb"<([^\s:/>]+:)?", element)
    return (match.group(1) or b"") if match else b""


# ---- grammar ----


@cache
def _grammar() -> Any:
    # Late: lxml costs 5 MB and 20 ms, all three 6; nodes read in a child of theirs, the simulator nothing.
    from importlib.resources import files

    from lxml import etree

    schema = files("p2psipd.proto.reload").joinpath("overlay_config.rng").read_bytes()
    return etree.RelaxNG(etree.fromstring(schema))


def parse_tree(document: bytes) -> Any:
    """The lxml tree of a document that ``locate`` has accepted; ``ConfigurationError`` if lxml does not like
    it.
    """
    from lxml import etree  # late, as above

    parser = etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )
    try:
        return etree.fromstring(document, parser)
    except etree.XMLSyntaxError as error:
        raise ConfigurationError((error.lineno or 0, f"not well-formed XML: {error.msg}")) from None


def grammar_faults(tree: Any) -> list[tuple[int, str]]:
    """What the grammar of RFC 6940 section 11.1.1 finds wrong with a tree; empty if nothing."""
    grammar = _grammar()
    if grammar.validate(tree):
        return []
    return [(entry.line, f"grammar: {entry.message}") for entry in grammar.error_log][:_MAXIMUM_FAULTS]


# ---- typed elements ----


class Faults(list[tuple[int, str]]):
    """The faults found so far, bounded."""

    def add(self, element: Any, text: str) -> None:
        """Note a fault at the line of ``element`` (None: no line)."""
        if len(self) < _MAXIMUM_FAULTS:
            self.append((0 if element is None else element.sourceline or 0, text))


def text_of(element: Any) -> str:
    """An element's text without the white space around it."""
    return "".join(element.itertext()).strip()


def local_name(element: Any) -> str:
    """An element's name: bare in the base namespace, "{namespace}name" in another."""
    tag: str = element.tag
    prefix = "{" + BASE + "}"
    return tag[len(prefix) :] if tag.startswith(prefix) else tag


class ElementReader:
    """Reads the children of one element, by name; every fault is noted with line and expectation."""

    def __init__(self, element: Any, faults: Faults, known: frozenset[str], where: str) -> None:
        self.element = element
        self.faults = faults
        self.where = where
        self._children: dict[str, list[Any]] = {}
        self.foreign: list[Any] = []
        for child in element:
            name = local_name(child)
            if name in known:
                self._children.setdefault(name, []).append(child)
            elif name.startswith("{"):
                self.foreign.append(child)
            else:
                faults.add(child, f"{where}: unknown element {name}")

    def all(self, name: str) -> list[Any]:
        """All children of that name."""
        return self._children.get(name, [])

    def one(self, name: str) -> Any:
        """The only child of that name, or None; a second one is a fault."""
        found = self.all(name)
        for extra in found[1:]:
            self.faults.add(extra, f"{name}: only one expected")
        return found[0] if found else None

    def value(self, name: str, convert: Callable[[str], T], default: T) -> T:
        """The converted text of the only child of that name, or the default if it is absent or wrong."""
        child = self.one(name)
        if child is None:
            return default
        return next(self._converted([child], convert), default)

    def required(self, name: str, convert: Callable[[str], T], default: T) -> T:
        """As ``value``, but an absent child is a fault."""
        if self.one(name) is None:
            self.faults.add(self.element, f"{self.where}: element {name} expected")
        return self.value(name, convert, default)

    def values(self, name: str, convert: Callable[[str], T]) -> tuple[T, ...]:
        """The converted texts of all children of that name that are right."""
        return tuple(self._converted(self.all(name), convert))

    def _converted(self, children: list[Any], convert: Callable[[str], T]) -> Iterator[T]:
        for child in children:
            try:
                yield convert(text_of(child))
            except ValueError as error:
                self.faults.add(child, f"{local_name(child)}: {error}")


def as_text(text: str) -> str:
    """A non-empty text."""
    if not text:
        raise ValueError("text expected, got nothing")
    return text


def as_boolean(text: str) -> bool:
    """xsd:boolean."""
    if text in ("true", "1"):
        return True
    if text in ("false", "0"):
        return False
    raise ValueError(f"true or false expected, got {text[:80]!r}")


def as_integer(least: int, greatest: int) -> Callable[[str], int]:
    """A conversion to an integer in a range."""

    def convert(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,12}", text, re.ASCII) or not least <= int(text) <= greatest:
            raise ValueError(f"an integer from {least} to {greatest} expected, got {text[:80]!r}")
        return int(text)

    return convert


def as_base64(text: str) -> bytes:
    """base64 with white space in it."""
    try:
        return b64decode("".join(text.split()), validate=True)
    except (Base64Error, ValueError):
        raise ValueError("base64 expected") from None


def as_node_id(length: int) -> Callable[[str], bytes]:
    """A conversion of a hexadecimal Node-ID of ``length`` octets."""

    def convert(text: str) -> bytes:
        if not re.fullmatch(rf"[0-9A-Fa-f]{{{2 * length}}}", text):
            raise ValueError(f"a Node-ID of {2 * length} hexadecimal digits expected, got {text[:80]!r}")
        return bytes.fromhex(text)

    return convert
