"""Header values of SIP that are more than text (RFC 3261 sections 7.3, 20, 25).

Values are immutable, and ``str()`` of a parsed one is verbatim its text without white space around it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from p2psipd.proto.sip.errors import MalformedMessage, MessageTooLarge
from p2psipd.proto.sip.parameters import NO_PARAMETERS, TOKEN, Parameters, Remembered, check_text
from p2psipd.proto.sip.uri import Uri, canonical_host, parse_uri

__all__ = ["CSeq", "NameAddr", "Parameters", "Via", "quote", "split_list", "unquote"]

# How nearly every address is written; the other expressions read what else may be.
_USUAL_ADDRESS = re.compile(rf'(?:"([^"\\\r\n]*+)" ?)?<([^<>\s"]++)>(;tag=({TOKEN}++))?')
_NAME_ADDR = re.compile(
    r'\s*+(?:"([^"\\]*+(?:\\.[^"\\]*+)*+)"\s*+|([^"<>,;:@\\]*+))<([^<>\s"]++)>\s*+(;.*+)?', re.DOTALL
)
# Without brackets all parameters are the header's, and the URI may hold neither "?" nor "," (RFC 3261
# section 20.10).
_ADDR_SPEC = re.compile(r"\s*+([A-Za-z][A-Za-z0-9+.\-]*+:[^\s;?,<>\"]++)\s*+(;.*+)?", re.DOTALL)
_VIA = re.compile(
    rf"\s*+({TOKEN}++)\s*+/\s*+({TOKEN}++)\s*+/\s*+({TOKEN}++)\s++"
    r"([A-Za-z0-9_.\-]++|\[[0-9A-Fa-f:.]++\])(?:\s*+:\s*+([0-9]{1,5}))?\s*+",
    re.DOTALL,
)
_USUAL_VIA_PARAMETERS = re.compile(rf"branch=({TOKEN}++)(;rport)?")
MAX_MEMBERS = 256
_CSEQ = re.compile(rf"([0-9]{{1,64}})\s++({TOKEN}++)", re.DOTALL)
_UNTIL_DELIMITER = re.compile(r'(?:[^",<]|"[^"\\]*+(?:\\.[^"\\]*+)*+"|<[^<>]*+>)*+', re.DOTALL)
_BARE_RPORT = re.compile(r";\s*+rport(?=\s*+(?:;|$))", re.IGNORECASE)
_Q = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")
_TO_ESCAPE = re.compile(r'["\\\x00-\x08\x0b-\x1f\x7f]')
_MAX_SECONDS = 2**32 - 1


def split_list(text: str) -> list[str]:
    """The members of a comma-separated value; commas in quoted strings and in <> don't count.

    Raises MalformedMessage for an unbalanced quote or bracket and for an empty member,
    MessageTooLarge for more than 256.
    """
    if "," not in text:
        return [text.strip()]
    members: list[str] = []
    if '"' not in text and "<" not in text and text.count(",") < MAX_MEMBERS:
        members = [member.strip() for member in text.split(",")]
        if "" in members:
            raise MalformedMessage("empty member in a list")
        return members
    position, end = 0, len(text)
    while True:
        match = _UNTIL_DELIMITER.match(text, position)
        stop = match.end() if match else position
        member = text[position:stop].strip()
        if not member:
            raise MalformedMessage("empty member in a list")
        members.append(member)
        if len(members) > MAX_MEMBERS:
            raise MessageTooLarge("too many members in a list")
        if stop == end:
            return members
        if text[stop] != ",":
            raise MalformedMessage("unbalanced quotes or brackets")
        position = stop + 1


def quote(text: str) -> str:
    """A quoted-string (RFC 3261 section 25.1).  Raises MalformedMessage for line ends."""
    return '"' + _TO_ESCAPE.sub(r"\\\g<0>", check_text(text)) + '"'


def unquote(text: str) -> str:
    """The content of a quoted-string, escapes resolved; text without quotes is returned as it is."""
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        return text
    inner = text[1:-1]
    return re.sub(r"\\(.)", r"\1", inner, flags=re.DOTALL) if "\\" in inner else inner


class NameAddr:
    """An address with parameters: From, To, Contact, Route, Record-Route, Path ... (RFC 3261 section 20).

    `display` is unquoted, `params` are the header's parameters (those after the ">"), `tag` the one of that name (None
    when absent or empty).  The URI is parsed when first read.
    """

    __slots__ = ("_text", "_uri", "display", "params", "tag", "uri_text")

    _text: str
    _uri: Uri | None
    display: str
    params: Parameters
    tag: str | None
    uri_text: str

    def __init__(self, uri: Uri | str, display: str = "", params: Parameters = NO_PARAMETERS) -> None:
        """Raises MalformedMessage if `display` or `uri` can't stand in a header."""
        self._uri = parse_uri(uri) if isinstance(uri, str) else uri
        self.uri_text = str(self._uri)
        self.display = display
        self.params = params
        self.tag = params.get("tag") or None
        shown = quote(display) + " " if display else ""
        self._text = f"{shown}<{self.uri_text}>{params}"

    @classmethod
    def parse(cls, text: str) -> NameAddr:
        """One address.  Raises MalformedMessage; the URI itself is judged when `uri` is read."""
        made = cls.__new__(cls)
        made._uri = None
        match = _USUAL_ADDRESS.fullmatch(text)
        if match:
            display, made.uri_text, params, tag = match.groups()
            made.display, made._text, made.tag = display or "", text, tag
            made.params = Parameters.trusted((("tag", tag),), params) if tag else NO_PARAMETERS
            return made
        match = _NAME_ADDR.fullmatch(text)
        if match:
            quoted, plain, made.uri_text, params = match.groups()
            made.display = unquote(f'"{quoted}"') if quoted is not None else plain.strip()
        else:
            match = _ADDR_SPEC.fullmatch(text)
            if not match:
                raise MalformedMessage("bad address")
            made.uri_text, params = match.groups()
            made.display = ""
        made.params, made.tag = NO_PARAMETERS, None
        if params:
            made.params = Parameters.parse(params)
            made.tag = made.params.get("tag") or None
        made._text = text.strip()
        return made

    @classmethod
    def parse_list(cls, text: str) -> list[NameAddr]:
        """A comma-separated list of addresses.  Raises MalformedMessage."""
        return [cls.parse(member) for member in split_list(text)]

    @property
    def uri(self) -> Uri:
        """The URI.  Raises MalformedUri."""
        if self._uri is None:
            self._uri = parse_uri(self.uri_text)
        return self._uri

    @property
    def q(self) -> float | None:
        """The preference, 0 to 1; None when absent.

        Raises MalformedMessage when out of range (RFC 3261 section 25.1).
        """
        text = self.params.get("q") if self.params is not NO_PARAMETERS else None
        if text is None:
            return None
        if not _Q.fullmatch(text):
            raise MalformedMessage("bad q value")
        return float(text)

    @property
    def expires(self) -> int | None:
        """The lifetime asked for in seconds, at most 2^32-1; None when absent or no number (RFC 3261 10.2.1.1)."""
        text = self.params.get("expires") if self.params is not NO_PARAMETERS else None
        if not text or not (text.isascii() and text.isdigit()):
            return None
        return min(int(text), _MAX_SECONDS) if len(text) < 20 else _MAX_SECONDS

    def with_param(self, name: str, value: str | None = None) -> NameAddr:
        """The same address with this header parameter set."""
        return NameAddr(self.uri, self.display, self.params.with_param(name, value))

    def without(self, *names: str) -> NameAddr:
        """The same address without these header parameters."""
        return NameAddr(self.uri, self.display, self.params.without(*names))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NameAddr) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"NameAddr({self._text!r})"


_DEFAULT_PORTS = {"TLS": 5061, "WS": 80, "WSS": 443}


class Via:
    """One Via value (RFC 3261 section 20.42, RFC 3581).  `host` is in lower case and without brackets."""

    __slots__ = ("_claims", "_params", "_text", "asks_port", "branch", "host", "port", "protocol", "transport")

    _claims: bool
    """Whether its sender has written a "received"."""
    _params: Parameters | None
    _text: str
    asks_port: bool
    branch: str | None
    host: str
    port: int | None
    protocol: str
    transport: str

    def __init__(
        self,
        transport: str,
        host: str,
        port: int | None = None,
        params: Parameters = NO_PARAMETERS,
        protocol: str = "SIP/2.0",
    ) -> None:
        """Raises MalformedMessage if the parts make no Via."""
        shown = f"[{host}]" if ":" in host else host
        at = shown if port is None else f"{shown}:{port}"
        made = Via.parse(f"{protocol}/{transport} {at}{params}")
        self.transport, self.host, self.port, self._params = made.transport, made.host, made.port, params
        self.protocol, self.branch, self._text = made.protocol, made.branch, made._text
        self.asks_port, self._claims = made.asks_port, made._claims

    @classmethod
    def own(cls, transport: str, host: str, port: int | None, branch: str, flag: str | None = None) -> Via:
        """Our Via of a request: `flag` is a parameter without a value (rport, alias). The parts are taken as they
        come, so they must be our own.
        """
        made = cls.__new__(cls)
        made.protocol, made.transport, made.host, made.port = "SIP/2.0", transport, host.lower(), port
        made.branch, made._params, made.asks_port, made._claims = branch, None, flag == "rport", False
        text = f";branch={branch}" if flag is None else f";branch={branch};{flag}"
        shown = f"[{host}]" if ":" in host else host
        at = shown if port is None else f"{shown}:{port}"
        made._text = f"SIP/2.0/{transport} {at}{text}"
        return made

    @classmethod
    def parse(cls, text: str) -> Via:
        """One value.  Raises MalformedMessage."""
        sender, semicolon, params = text.partition(";")
        made = cls.__new__(cls)
        made.protocol, made.transport, made.host, made.port = _senders[sender]
        made._text = text.strip()
        match = _USUAL_VIA_PARAMETERS.fullmatch(params)
        if match:
            made.branch, made._params, made.asks_port, made._claims = match[1], None, match[2] is not None, False
            return made
        made._params = found = Parameters.parse(f";{params}") if semicolon else NO_PARAMETERS
        made.branch = found.get("branch") or None
        made.asks_port, made._claims = "rport" in found, "received" in found
        return made

    @property
    def params(self) -> Parameters:
        """Its parameters."""
        if self._params is None:
            self._params = Parameters.parse(self._text[self._text.index(";") :])
        return self._params

    @property
    def received(self) -> str | None:
        """The address that the request came from, without brackets (RFC 5118 section 4.5)."""
        value = self.params.get("received")
        return value.strip("[]").lower() if value else None

    @property
    def rport(self) -> int | None:
        """The port that the request came from; 0 when asked for but not filled in, None when absent (RFC 3581)."""
        value = self.params.get("rport") if self.asks_port else None
        if value is None:
            return None
        return (
            int(value) if value.isascii() and value.isdigit() and len(value) < 6 and int(value) < 65536 else 0
        )

    @property
    def default_port(self) -> int:
        """The port of the transport when none is written."""
        return _DEFAULT_PORTS.get(self.transport, 5060)

    @property
    def sent_by(self) -> tuple[str, int]:
        """Host and port of who sent it, the transport's default filled in."""
        return (self.host, self.port if self.port is not None else self.default_port)

    @property
    def hostport(self) -> str:
        """Host and port as a Via writes them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"

    def stamped(self, host: str, port: int) -> Via:
        """The same value marked with where the request really came from (RFC 3261 18.2.1, RFC 3581 4).

        `received` is written when rport was asked for or `host` differs from sent-by; a `received` that the
        sender wrote is replaced.  The rest stays verbatim.
        """
        asked, claimed = self.asks_port, self._claims
        if not asked and not claimed and host == self.host:
            return self
        params, text = self.params, self._text
        made = Via.__new__(Via)
        if claimed or (asked and self.params.get("rport")):
            params = params.with_param("received", host)
            params = params.with_param("rport", str(port)) if asked else params
            text = f"{self.protocol}/{self.transport} {self.hostport}{params}"
        else:
            if asked:
                bare = _BARE_RPORT.search(text)
                text = f"{text[: bare.end()]}={port}{text[bare.end() :]}" if bare else text
            text = f"{text};received={host}"
            pairs = [(name, str(port) if name.lower() == "rport" else value) for name, value in params]
            params = Parameters.trusted((*pairs, ("received", host)), text[text.index(";") :])
        made.protocol, made.transport, made.host, made.port = (
            self.protocol,
            self.transport,
            self.host,
            self.port,
        )
        made._params, made.branch, made._text = params, self.branch, text
        made.asks_port, made._claims = asked, True
        return made

    def with_param(self, name: str, value: str | None = None) -> Via:
        """The same value with this parameter set."""
        return Via(self.transport, self.host, self.port, self.params.with_param(name, value), self.protocol)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Via) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Via({self._text!r})"


def _sender(text: str) -> tuple[str, str, str, int | None]:
    """Protocol, transport, host and port of a Via: what stands before its parameters."""
    match = _VIA.fullmatch(text)
    if not match:
        raise MalformedMessage("bad Via")
    name, version, transport, host, port = match.groups()
    if port is not None and int(port) > 65535:
        raise MalformedMessage("bad port in Via")
    return (
        f"{name}/{version}".upper(),
        transport.upper(),
        canonical_host(host),
        None if port is None else int(port),
    )


_senders = Remembered(_sender, 2048)


class CSeq(NamedTuple):
    """Sequence number and method (RFC 3261 section 20.16)."""

    number: int
    method: str

    @classmethod
    def parse(cls, text: str) -> CSeq:
        """Raises MalformedMessage; a number must be below 2^31 (RFC 3261 section 8.1.1.5)."""
        match = _CSEQ.fullmatch(text.strip())
        if not match:
            raise MalformedMessage("bad CSeq")
        number = int(match[1])
        if number >= 2**31:
            raise MalformedMessage("CSeq out of range")
        return cls(number, match[2])

    def __str__(self) -> str:
        return f"{self.number} {self.method}"
