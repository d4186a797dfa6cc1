"""The grammar checker against libxml2's, and what it says."""

from __future__ import annotations

import random
from importlib.resources import files

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from p2psipd.proto.reload.relax_ng import Grammar
from p2psipd.proto.reload.xml_tree import XmlError, parse_xml
from tests.proto.reload.rfc6940_example import EXAMPLE
from tests.proto.reload.test_overlay_config import DOCUMENT

SCHEMA = files("p2psipd.proto.reload").joinpath("overlay_config.rng").read_bytes()
THEIRS = etree.RelaxNG(etree.fromstring(SCHEMA))
OURS = Grammar(SCHEMA)
_TEXTS = (
    "",
    " ",
    "1",
    "-1",
    "65535",
    "4294967296",
    "true",
    "yes",
    "AAAA",
    "AA=A",
    "2026-12-31T23:59:59Z",
    "2026-13-01",
)
_ATTRIBUTES = ("name", "id", "digest", "algorithm", "port", "enable", "sequence", "{x}a", "{urn:x-p2psipd:overlay:1}a")


def damage(document: bytes, draw: random.Random) -> bytes:
    """The document with some elements moved, removed, doubled or renamed, and some texts and attributes changed."""
    root = etree.fromstring(document, etree.XMLParser(remove_comments=True, remove_pis=True))
    for _ in range(draw.randint(0, 3)):
        elements = list(root.iter())
        element, other = draw.choice(elements), draw.choice(elements)
        parent = element.getparent()
        action = draw.randrange(7)
        if action == 0 and parent is not None:
            parent.remove(element)
        elif action == 1 and parent is not None:
            parent.insert(draw.randrange(len(parent) + 1), etree.fromstring(etree.tostring(element)))
        elif action == 2 and "signature" not in element.tag:
            element.tag = draw.choice([other.tag, "{urn:else}x", "x", "{urn:ietf:params:xml:ns:p2p:redir}x"])
        elif action == 3:
            # libxml2 passes over what is no base64, against XML Schema.
            packed = etree.QName(element).localname in ("root-cert", "signature", "kind-signature")
            element.text = draw.choice(("", "AAAA", "AA=A", "A") if packed else _TEXTS)
        elif action == 4:
            element.set(draw.choice(_ATTRIBUTES), draw.choice(_TEXTS))
        elif action == 5 and element.attrib:
            del element.attrib[draw.choice(sorted(element.attrib))]
        elif action == 6:
            other.append(etree.fromstring("<a xmlns='urn:else'>t<b c='d'><x xmlns=''/></b></a>"))
    return etree.tostring(root)


@settings(max_examples=300)
@given(st.sampled_from([DOCUMENT, EXAMPLE]), st.randoms(use_true_random=False))
def test_the_same_verdict_as_libxml2(document: bytes, draw: random.Random) -> None:
    """A document is valid for us exactly if it is for libxml2, whatever has been done to it."""
    damaged = damage(document, draw)
    ours = OURS.faults(parse_xml(damaged)[0])
    assert (ours == []) == THEIRS.validate(etree.fromstring(damaged)), (damaged, ours)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (b"<turn-density>", b"<bad:x xmlns:bad='urn:x-p2psipd:overlay:1'/><turn-density>", "element x is not expected"),
        (b"<turn-density>1<", b"<turn-density>x<", "turn-density: text 'x' is not expected"),
        (b"<turn-density>1<", b"<turn-density a='b'>1<", "turn-density: attribute a is not expected"),
        (b' port="', b' prt="', "bootstrap-node: attribute prt is not expected"),
        (b"instance-name=", b"instance-nam=", "configuration: an attribute is missing"),
        (b"<data-model>DICTIONARY</data-model>", b"", "kind: its content is not complete"),
    ],
)
def test_what_is_said(old: bytes, new: bytes, expected: str) -> None:
    """Each fault names the element and its line, and the rest of the document is judged on."""
    assert old in DOCUMENT
    document = DOCUMENT.replace(old, new, 1)
    faults = OURS.faults(parse_xml(document)[0])
    assert any(expected in text for _, text in faults), faults
    line = DOCUMENT[: DOCUMENT.index(old)].count(b"\n") + 1
    assert faults[0][0] <= line and len(faults) <= 2


def test_no_tree() -> None:
    """What is no XML, has a DOCTYPE or is nested without end is refused with its line."""
    for document, expected in ((b"<a>\n</b>", "mismatched"), (b"<!DOCTYPE a>\n<a/>", "DOCTYPE"), (b"<a>" * 40, "deep")):
        with pytest.raises(XmlError, match=expected) as raised:
            parse_xml(document)
        assert raised.value.line >= 1
