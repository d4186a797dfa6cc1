"""Generated messages read by our parser and by two that others wrote, `sipmessage` and `aiosipua`.

A message is drawn as what it means (`Meaning`) together with one of the many ways to write it; each way that not
every library understands is a named `Form`. Ours must read all of them. Each library is asked about the forms that are
not in the table of its known faults, and each known fault is shown to be there still.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple
from urllib.parse import unquote

import aiosipua.headers
import aiosipua.message
import pytest
import sipmessage
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from p2psipd.proto.sip.headers import NameAddr
from p2psipd.proto.sip.message import Request, parse_message
from p2psipd.proto.sip.uri import SipUri

Params = tuple[tuple[str, str | None], ...]


class Form(Enum):
    """A way to write a message that at least one library does not understand."""

    FOLDED = "a header continued on the next line"
    SPACE_BEFORE_COLON = "white space between name and colon"
    RARE_COMPACT = "a compact form from outside RFC 3261"
    JOINED = "several addresses on one line, display names quoted"
    ESCAPED_QUOTE = "a backslash escape in a display name"
    BRACKET_IN_QUOTES = "angle brackets and commas in a quoted display name"
    QUOTED_PARAMETER = "a quoted parameter value with a semicolon inside"
    UPPER_PARAMETER = "a parameter name in capitals"
    ADDR_SPEC = "an address without angle brackets, whose parameters are the header's"
    IPV6 = "IPv6 references"
    BARE_RECEIVED = "a received parameter with an IPv6 address without brackets"
    UNDERSCORE_HOST = "a host with an underscore"
    VIA_SPACES = "white space around the slashes and colon of a Via"
    USER_SEMICOLON = "a semicolon in the user part"
    PASSWORD = "a password beside the user"
    URI_HEADERS = "headers in a Contact URI"
    OTHER_SCHEME = "a Request-URI that is no SIP URI"
    SELF_PARAMETER = "a parameter with the name self"
    UTF8 = "characters outside ASCII"
    NOT_UTF8 = "octets in an unknown header that are not UTF-8"
    BINARY = "a body that is not text"
    EXCESS = "octets beyond Content-Length"
    LONG_SCHEME = "the scheme in capitals"


class Uri(NamedTuple):
    """A SIP URI: escapes undone, the host in lower case and without brackets."""

    scheme: str
    user: str | None
    host: str
    port: int | None
    params: frozenset[tuple[str, str | None]]


class Address(NamedTuple):
    """An address and its header parameters; names in lower case, quotes undone."""

    display: str
    uri: Uri
    params: frozenset[tuple[str, str | None]]


class Hop(NamedTuple):
    """A Via."""

    transport: str
    host: str
    port: int | None
    params: frozenset[tuple[str, str | None]]


class Meaning(NamedTuple):
    """What a message says, however it is written."""

    method: str
    uri: Uri | str
    vias: tuple[Hop, ...]
    sender: Address
    to: Address
    contacts: tuple[Address, ...]
    call_id: str
    cseq: tuple[int, str]
    max_forwards: int
    subject: str
    event: str
    body: bytes


class Drawn(NamedTuple):
    """A message and what it means."""

    data: bytes
    meaning: Meaning


# ---- drawing -----------------------------------------------------------------------------------------------

WORDS = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", min_size=1, max_size=8)
LOWER = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=8)
PORTS = st.none() | st.integers(1, 65535)
METHODS = st.sampled_from(["INVITE", "REGISTER", "OPTIONS", "MESSAGE", "NEWMETHOD", "x-%41"])
ESCAPED_USERS = {
    "alice": "alice",
    "%61lice": "alice",
    "a%20b": "a b",
    "a%3Bb": "a;b",
    "+49-30.1!~*'()": "+49-30.1!~*'()",
}


class Writer:
    """Draws parts of a message; every part is a pair of how it is written and what it means."""

    def __init__(self, draw: st.DrawFn, forms: frozenset[Form]) -> None:
        self.draw = draw
        self.forms = forms

    def maybe(self, form: Form) -> bool:
        """Whether to write this part in that form."""
        return form in self.forms and self.draw(st.booleans())

    def host(self) -> tuple[str, str]:
        if self.maybe(Form.IPV6):
            return self.draw(
                st.sampled_from(
                    [("[2001:DB8::1]", "2001:db8::1"), ("[::1]", "::1"), ("[::FFFF:192.0.2.2]", "::ffff:192.0.2.2")]
                )
            )
        if self.maybe(Form.UNDERSCORE_HOST):
            return "my_host", "my_host"
        name = self.draw(st.sampled_from(["example.com", "192.0.2.7", "a-b.example.net", "HOST.Example.ORG"]))
        return name, name.lower()

    def params(self, names: tuple[str, ...] = ("x", "transport", "lr", "y-1")) -> tuple[str, Params]:
        chosen = self.draw(st.lists(st.sampled_from(names), max_size=3, unique=True))
        pairs: list[tuple[str, str | None]] = []
        text = ""
        for name in chosen:
            value = self.draw(st.none() | LOWER)
            shown = name.upper() if self.maybe(Form.UPPER_PARAMETER) else name
            pairs.append((name, value))
            text += f";{shown}" if value is None else f";{shown}={value}"
        if self.maybe(Form.SELF_PARAMETER):
            text, pairs = f"{text};self=1", [*pairs, ("self", "1")]
        return text, tuple(pairs)

    def uri(self, *, params: bool = False, bare: bool = False) -> tuple[str, Uri]:
        scheme = self.draw(st.sampled_from(["sip", "sips"]))
        written = scheme.upper() if self.maybe(Form.LONG_SCHEME) else scheme
        user, meant = self.draw(st.sampled_from([(None, None), *ESCAPED_USERS.items()]))
        # RFC 3261 section 20: what has a semicolon must stand in brackets.
        if not bare and self.maybe(Form.USER_SEMICOLON):
            user, meant = "user;par=u", "user;par=u"
        at = "" if user is None else f"{user}@"
        if user is not None and self.maybe(Form.PASSWORD):
            at = f"{user}:secret@"
        host, host_meant = self.host()
        port = self.draw(PORTS)
        shown_port = "" if port is None else f":{port}"
        shown_params, pairs = self.params() if params else ("", ())
        headers = "?Route=%3Csip:a%3E" if params and self.maybe(Form.URI_HEADERS) else ""
        text = f"{written}:{at}{host}{shown_port}{shown_params}{headers}"
        return text, Uri(scheme, meant, host_meant, port, frozenset(pairs))

    def address(self, tagged: bool) -> tuple[str, Address]:
        tag: Params = (("tag", self.draw(LOWER)),) if tagged else ()
        if self.maybe(Form.ADDR_SPEC):
            text, uri = self.uri(bare=True)
            own, pairs = self.params(("p1", "expires"))
            tail = "".join(f";{name}={value}" for name, value in tag)
            return f"{text}{tail}{own}", Address("", uri, frozenset((*tag, *pairs)))
        text, uri = self.uri(params=True)
        names = [('"Q. N." ', "Q. N."), ('"" ', "")]
        if Form.JOINED not in self.forms:
            names += [("", ""), ("Token Name ", "Token Name")]
        display, meant = self.draw(st.sampled_from(names))
        if self.maybe(Form.ESCAPED_QUOTE):
            display, meant = r'"a \"b\" \\ c" ', r'a "b" \ c'
        elif self.maybe(Form.BRACKET_IN_QUOTES):
            display, meant = '"a, <sip:b@c>" ', "a, <sip:b@c>"
        elif self.maybe(Form.UTF8):
            display, meant = '"Zoë Łuk" ', "Zoë Łuk"
        own, pairs = self.params(("p1", "expires", "q-x"))
        tail = "".join(f";{name}={value}" for name, value in tag)
        if self.maybe(Form.QUOTED_PARAMETER):
            own, pairs = f'{own};+sip.instance="<urn:x:1;2>"', (*pairs, ("+sip.instance", "<urn:x:1;2>"))
        return f"{display}<{text}>{tail}{own}", Address(meant, uri, frozenset((*tag, *pairs)))

    def via(self) -> tuple[str, Hop]:
        transport = self.draw(st.sampled_from(["UDP", "TCP", "TLS", "SCTP"]))
        host, meant = self.host()
        port = self.draw(PORTS)
        start = f"SIP/2.0/{transport} {host}" + ("" if port is None else f":{port}")
        if self.maybe(Form.VIA_SPACES):
            start = f"SIP / 2.0 / {transport}  {host}" + ("" if port is None else f" : {port}")
        branch = "z9hG4bK" + self.draw(WORDS)
        pairs: Params = (("branch", branch),)
        text = f"{start};branch={branch}"
        if self.maybe(Form.BARE_RECEIVED):
            text, pairs = f"{text};received=2001:db8::9", (*pairs, ("received", "2001:db8::9"))
        return text, Hop(transport, meant, port, frozenset(pairs))

    def line(self, name: str, value: str) -> str:
        if self.maybe(Form.FOLDED) and " " in value:
            value = value.replace(" ", "\r\n \t", 1)
        colon = " :" if self.maybe(Form.SPACE_BEFORE_COLON) else ":"
        compact = {"Via": "v", "From": "f", "To": "t", "Contact": "m", "Call-ID": "i", "Subject": "s"}.get(name)
        shown = self.draw(st.sampled_from([name, name.lower(), name.upper(), *([compact] if compact else [])]))
        return f"{shown}{colon}{self.draw(st.sampled_from([' ', '', '  ']))}{value}"

    def lists(self, name: str, values: list[str]) -> list[str]:
        """The values on a line each, or (Form.JOINED) all on one."""
        if len(values) > 1 and self.maybe(Form.JOINED):
            return [self.line(name, ", ".join(values))]
        return [self.line(name, value) for value in values]


@st.composite
def messages(draw: st.DrawFn, allowed: frozenset[Form]) -> Drawn:
    """A request written in some of the allowed forms."""
    forms = draw(st.frozensets(st.sampled_from(sorted(allowed, key=lambda form: form.name)), max_size=3))
    writer = Writer(draw, forms)
    method = draw(METHODS)
    uri, target = writer.uri()
    if writer.maybe(Form.OTHER_SCHEME):
        uri = target = "urn:service:sos"
    vias = [writer.via() for _ in range(draw(st.integers(1, 3)))]
    sender, to = writer.address(True), writer.address(False)
    contacts = [writer.address(False) for _ in range(draw(st.integers(0, 2)))]
    call_id, number, hops = draw(WORDS) + "@x", draw(st.integers(0, 2**31 - 1)), draw(st.integers(0, 255))
    subject = "Grüße, Ж" if writer.maybe(Form.UTF8) else draw(st.sampled_from(["", "a b", "x: y, z"]))
    body = (
        b"\x00\xff\r\n\r\n\x80"
        if writer.maybe(Form.BINARY)
        else draw(st.sampled_from([b"", b"v=0\r\n", b"a\r\n\r\nb"]))
    )
    lines = [
        *writer.lists("Via", [text for text, _ in vias]),
        writer.line("From", sender[0]),
        writer.line("To", to[0]),
        writer.line("Call-ID", call_id),
        writer.line("CSeq", f"{number} {method}"),
        writer.line("Max-Forwards", str(hops)),
        *writer.lists("Contact", [text for text, _ in contacts]),
        writer.line("Subject", subject),
        f"{'o' if writer.maybe(Form.RARE_COMPACT) else 'Event'}: dialog",
    ]
    raw = [line.encode() for line in lines]
    if writer.maybe(Form.NOT_UTF8):
        raw.append(b"X-Latin: \xfcber")
    raw.append(b"Content-Length: %d" % len(body))
    data = b"\r\n".join([f"{method} {uri} SIP/2.0".encode(), *raw, b"", body])
    if writer.maybe(Form.EXCESS):
        data += b"INVITE sip:next SIP/2.0\r\n"
    meaning = Meaning(
        method, target, tuple(hop for _, hop in vias), sender[1], to[1], tuple(each for _, each in contacts),
        call_id, (number, method), hops, subject, "dialog", body,
    )  # fmt: skip
    return Drawn(data, meaning)


# ---- three readers -----------------------------------------------------------------------------------------


def plain(pairs: Any) -> frozenset[tuple[str, str | None]]:
    """Parameters in comparable form."""
    return frozenset((name, value.strip('"') if value else value) for name, value in pairs)


def by_ours(data: bytes) -> Meaning:
    """Read with our parser, everything checked."""
    message = parse_message(data)
    assert isinstance(message, Request)
    message.check()

    def lower(params: Any) -> frozenset[tuple[str, str | None]]:
        return plain((name.lower(), value) for name, value in params)

    def uri(value: Any) -> Uri | str:
        if not isinstance(value, SipUri):
            return str(value)
        return Uri(value.scheme, value.user and value.unescaped_user, value.host, value.port, lower(value.params))

    def address(value: NameAddr) -> Address:
        shown = uri(value.uri)
        assert isinstance(shown, Uri)
        return Address(value.display, shown, lower(value.params))

    return Meaning(
        message.method, uri(message.uri),
        tuple(Hop(via.transport, via.host, via.port, lower(via.params)) for via in message.vias),
        address(message.from_), address(message.to), tuple(map(address, message.contacts)), message.call_id,
        tuple(message.cseq), message.max_forwards or 0, message.get("subject") or "",
        message.get("event") or "", message.body,
    )  # fmt: skip


def by_sipmessage(data: bytes) -> Meaning:
    """Read with sipmessage."""
    message = sipmessage.Message.parse(data)
    assert isinstance(message, sipmessage.Request)

    def uri(value: Any) -> Uri:
        params = plain(value.parameters.items())
        return Uri(value.scheme, value.user, value.host.strip("[]").lower(), value.port, params)

    def address(value: Any) -> Address:
        return Address(value.name, uri(value.uri), plain(value.parameters.items()))

    return Meaning(
        message.method, uri(message.uri),
        tuple(Hop(v.transport, v.host.strip("[]").lower(), v.port, plain(v.parameters.items())) for v in message.via),
        address(message.from_address), address(message.to_address), tuple(map(address, message.contact)),
        message.call_id, (message.cseq.sequence, message.cseq.method), message.max_forwards or 0,
        message.headers.get("Subject") or "", message.headers.get("Event") or "", message.body,
    )  # fmt: skip


def by_aiosipua(data: bytes) -> Meaning:
    """Read with aiosipua."""
    message = aiosipua.message.SipMessage.parse(data)
    assert isinstance(message, aiosipua.message.SipRequest)
    cseq = message.cseq
    assert cseq is not None

    def uri(value: Any) -> Uri:
        user = None if value.user is None else unquote(value.user)
        return Uri(value.scheme, user, value.host.strip("[]").lower(), value.port, plain(value.params.items()))

    def address(value: Any) -> Address:
        return Address(value.display_name or "", uri(value.uri), plain(value.params.items()))

    target = uri(aiosipua.headers.parse_uri(message.uri)) if message.uri.lower().startswith("sip") else message.uri
    return Meaning(
        message.method, target,
        tuple(Hop(v.transport, v.host.strip("[]").lower(), v.port, plain(v.params.items())) for v in message.via),
        address(message.from_addr), address(message.to_addr), tuple(map(address, message.contact)),
        message.call_id or "", (cseq.seq, cseq.method), int(message.get_header("max-forwards") or 0),
        message.get_header("subject") or "", message.get_header("event") or "", message.body,
    )  # fmt: skip


def reads(reader: Callable[[bytes], Meaning], drawn: Drawn) -> bool:
    """Whether `reader` understands the message as it is meant; a library may fail in any way it likes."""
    try:
        return reader(drawn.data) == drawn.meaning
    except Exception:
        return False


# ---- known faults ------------------------------------------------------------------------------------------

READERS = {"sipmessage": by_sipmessage, "aiosipua": by_aiosipua}
# Of sipmessage 0.7.1 and aiosipua 0.7.1.
FAULTS: dict[str, dict[Form, str]] = {
    "sipmessage": {
        Form.FOLDED: "does not know continuation lines: ValueError (RFC 3261 section 7.3.1)",
        Form.SPACE_BEFORE_COLON: "keeps the white space in the name: the header is not found (section 7.3.1)",
        Form.JOINED: "a quoted string ends at the last quote of the line: two Contacts become one (section 25.1)",
        Form.QUOTED_PARAMETER: "splits parameters at semicolons inside quotes (section 25.1)",
        Form.UPPER_PARAMETER: "parameter names are compared with their case (section 7.3.1)",
        Form.BARE_RECEIVED: "takes received only with brackets, against RFC 3261's own grammar (RFC 5118 section 4.5)",
        Form.UNDERSCORE_HOST: "ValueError: right by the grammar, but such hosts are in use",
        Form.VIA_SPACES: "no white space around the colon of a Via (section 25.1, COLON)",
        Form.URI_HEADERS: "ValueError at a question mark (section 19.1.1)",
        Form.OTHER_SCHEME: "ValueError for what is neither sip nor tel (section 8.1.1.1)",
        Form.SELF_PARAMETER: "TypeError: parameters become keyword arguments",
        Form.NOT_UTF8: "UnicodeDecodeError for the whole message",
        Form.EXCESS: "does not cut the body at Content-Length (section 18.3)",
        Form.LONG_SCHEME: "the scheme is compared with its case (section 19.1.4)",
    },
    "aiosipua": {
        Form.RARE_COMPACT: "knows the compact forms of RFC 3261 alone (RFC 6665 section 8.2.1)",
        Form.ESCAPED_QUOTE: "does not undo escapes in a display name (section 25.1)",
        Form.BRACKET_IN_QUOTES: "takes the first bracket of the value, quoted or not (section 25.1)",
        Form.QUOTED_PARAMETER: "splits parameters at semicolons inside quotes (section 25.1)",
        Form.ADDR_SPEC: "of an address without brackets it gives the URI all parameters but tag (section 20)",
        Form.VIA_SPACES: "no white space around the slashes of a Via (section 25.1, SLASH)",
        Form.USER_SEMICOLON: "URI parameters begin at the first semicolon, the user's included (section 19.1.1)",
        Form.PASSWORD: "the password stays in the user (section 19.1.1)",
    },
}
SETTINGS = settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=150
)
HUNT = settings(SETTINGS, max_examples=500, phases=[Phase.generate])


@SETTINGS
@given(messages(frozenset(Form)))
def test_ours_reads_every_form(drawn: Drawn) -> None:
    """Our parser understands each generated message as it was meant, and writes it again as it came."""
    assert by_ours(drawn.data) == drawn.meaning
    message = parse_message(drawn.data)
    assert drawn.data.startswith(message.encode())


@pytest.mark.parametrize("library", READERS)
def test_others_agree(library: str) -> None:
    """Outside its known faults, a parser that others wrote understands each generated message as ours does."""

    @SETTINGS
    @given(messages(frozenset(Form) - FAULTS[library].keys()))
    def agree(drawn: Drawn) -> None:
        assert READERS[library](drawn.data) == by_ours(drawn.data) == drawn.meaning

    agree()


@pytest.mark.parametrize(
    ("library", "form"),
    [pytest.param(name, form, id=f"{name}-{form.name}") for name in FAULTS for form in FAULTS[name]],
)
def test_known_faults_are_still_there(library: str, form: Form) -> None:
    """Each exclusion is needed: some message in that form is misread by the library, and not by us."""
    wrong = find(messages(frozenset({form})), lambda drawn: not reads(READERS[library], drawn), settings=HUNT)
    assert reads(by_ours, wrong)
