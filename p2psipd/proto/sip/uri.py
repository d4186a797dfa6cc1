"""URIs of SIP: sip, sips, tel, and any other scheme kept as it came (RFC 3261 section 19.1, RFC 3966).

``parse_uri(text)`` gives a SipUri, a TelUri or an OpaqueUri.  All three are immutable and hashable, and
``str()`` of a parsed one is verbatim its text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import AddressValueError, IPv6Address
from typing import TypedDict, Unpack
from urllib.parse import unquote_to_bytes

from p2psipd.proto.sip.errors import MalformedMessage, MalformedUri, UnsupportedScheme
from p2psipd.proto.sip.parameters import NO_PARAMETERS, Parameters, Remembered

__all__ = ["OpaqueUri", "SipUri", "TelUri", "Uri", "canonical_host", "parse_uri", "unescape"]

_ESCAPED = "%[0-9A-Fa-f]{2}"
# '#' is no user character of the grammar, but phones dial it unescaped.
_SIP = re.compile(
    r"([Ss][Ii][Pp][Ss]?):"
    rf"(?:((?:[A-Za-z0-9\-_.!~*'()&=+$,;?/#]++|{_ESCAPED})++)(?::((?:[A-Za-z0-9\-_.!~*'()&=+$,]++|{_ESCAPED})*+))?@)?"
    r"([A-Za-z0-9_.\-]++|\[[0-9A-Fa-f:.]++\])"
    r"(?::([0-9]{1,5}))?"
    r"(;[^?]*+)?"
    rf"(?:\?((?:[A-Za-z0-9\-_.!~*'()\[\]/?:+$=&]|{_ESCAPED})*+))?"
)
_OTHER = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*+):([!-~]++)")
_FORBIDDEN = re.compile(r"[<>\"\s]")
_TEL = re.compile(r"([+]?[0-9A-Fa-f*#\-.()]++)(;.*+)?")
_ESCAPE = re.compile(_ESCAPED)
_RESERVED = frozenset(";/?:@&=+$,")
_USER_SAFE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.!~*'()&=+$,;?/")
# RFC 3261 section 19.1.4: these never match when only one URI has them.
_STRICT_PARAMS = ("user", "ttl", "method", "maddr", "transport")


def unescape(text: str) -> str:
    """Percent-escapes decoded as UTF-8.

    Octets that are not UTF-8 stay escaped (in upper case), so any text is safe here.
    """
    if "%" not in text:
        return text
    raw = unquote_to_bytes(text)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "".join([chr(octet) if octet < 0x80 else f"%{octet:02X}" for octet in raw])


def escape_user(text: str) -> str:
    """A user part from plain text: what the grammar does not let stand is percent-escaped (RFC 3261 19.1.2)."""
    return "".join(
        [
            char
            if char in _USER_SAFE
            else "".join([f"%{octet:02X}" for octet in char.encode("utf-8", "replace")])
            for char in text
        ]
    )


def _comparable(text: str) -> str:
    """A component with needless escapes undone and the needed ones in upper case (RFC 3261 section 19.1.4).
    """
    if "%" not in text:
        return text

    def one(match: re.Match[str]) -> str:
        char = chr(int(match[0][1:], 16))
        return char if "!" <= char <= "~" and char not in _RESERVED and char != "%" else match[0].upper()

    return _ESCAPE.sub(one, text)


def canonical_host(host: str) -> str:
    """Lower case, IPv6 without brackets.  Raises MalformedUri for an IPv6 reference that is none.

    The extra colon that RFC 3261's grammar allowed (RFC 5118 section 4.10) is dropped.
    """
    if host[0] != "[":
        return host.lower()
    inner = host[1:-1].lower().replace(":::", "::")
    try:
        IPv6Address(inner)
    except AddressValueError:
        raise MalformedUri("bad IPv6 reference") from None
    return inner


class _Changes(TypedDict, total=False):
    scheme: str
    user: str | None
    password: str | None
    host: str
    port: int | None
    params: Parameters
    headers: str


class SipUri:
    """A sip or sips URI (RFC 3261 section 19.1).

    `user` and `password` are raw (escapes kept), `host` is in lower case and without brackets, `port` None
    when not written, `headers` the text after "?".  ``==`` and hash follow section 19.1.4.
    """

    __slots__ = ("_aor", "_text", "headers", "host", "params", "password", "port", "scheme", "user")

    _aor: str | None
    _text: str
    headers: str
    host: str
    params: Parameters
    password: str | None
    port: int | None
    scheme: str
    user: str | None

    def __init__(
        self,
        host: str,
        user: str | None = None,
        password: str | None = None,
        port: int | None = None,
        params: Parameters = NO_PARAMETERS,
        headers: str = "",
        scheme: str = "sip",
    ) -> None:
        """From parts in wire form (see `escape_user`).  Raises MalformedUri if they make no URI."""
        self.scheme, self.user, self.password, self.host = scheme, user, password, host.strip("[]")
        self.port, self.params, self.headers = port, params, headers
        self._aor = None
        self._text = self._write()
        made = SipUri.parse(self._text)
        self.host = made.host

    @classmethod
    def parse(cls, text: str) -> SipUri:
        """Raises MalformedUri, or UnsupportedScheme if it is no sip or sips URI."""
        made = parse_uri(text)
        if not isinstance(made, SipUri):
            raise UnsupportedScheme(f"not a SIP URI: {made.scheme}")
        return made

    @classmethod
    def _from_match(cls, match: re.Match[str], text: str) -> SipUri:
        scheme, user, password, host, port, params, headers = match.groups()
        made = cls.__new__(cls)
        made.scheme = scheme.lower()
        made.user = user
        made.password = password
        made.host = canonical_host(host)
        made.port = None
        if port is not None:
            made.port = int(port)
            if made.port > 65535:
                raise MalformedUri("port out of range")
        try:
            made.params = Parameters.parse_uri(params) if params else NO_PARAMETERS
        except MalformedMessage as error:
            raise MalformedUri(error.reason) from None
        made.headers = headers or ""
        made._aor = None
        made._text = text
        return made

    def _write(self) -> str:
        user = ""
        if self.user is not None:
            user = f"{self.user}@" if self.password is None else f"{self.user}:{self.password}@"
        headers = f"?{self.headers}" if self.headers else ""
        return f"{self.scheme}:{user}{self.hostport}{self.params}{headers}"

    @property
    def hostport(self) -> str:
        """Host and port as a URI writes them: ``example.com``, ``[2001:db8::1]:5060``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"

    @property
    def unescaped_user(self) -> str:
        """The user part with its escapes decoded; "" without one."""
        user = self.user
        return "" if not user else user if "%" not in user else unescape(user)

    @property
    def aor(self) -> str:
        """The address-of-record ``user@host``: unescaped, no port or parameters (RFC 3261 section 10.3)."""
        if self._aor is None:
            user = self.user
            self._aor = f"{user if '%' not in user else unescape(user)}@{self.host}" if user else self.host
        return self._aor

    @property
    def is_secure(self) -> bool:
        """Whether the scheme is sips."""
        return self.scheme == "sips"

    @property
    def transport(self) -> str | None:
        """The transport parameter in lower case."""
        value = self.params.get("transport") if self.params is not NO_PARAMETERS else None
        return value.lower() if value else None

    @property
    def lr(self) -> bool:
        """Whether this is a loose router (RFC 3261 section 16.12)."""
        return "lr" in self.params

    @property
    def ob(self) -> bool:
        """Whether the ob parameter is there (RFC 5626 section 5.1)."""
        return "ob" in self.params

    @property
    def gr(self) -> str | None:
        """The gr parameter, unescaped; "" without a value, None when absent (RFC 5627 section 4.2)."""
        value = self.params.get("gr") if self.params is not NO_PARAMETERS else None
        return None if value is None else unescape(value)

    @property
    def maddr(self) -> str | None:
        """The maddr parameter."""
        return self.params.get("maddr") or None

    def replace(self, **changes: Unpack[_Changes]) -> SipUri:
        """The same URI with other parts.  Raises MalformedUri."""
        parts: _Changes = {
            "scheme": self.scheme,
            "user": self.user,
            "password": self.password,
            "host": self.host,
            "port": self.port,
            "params": self.params,
            "headers": self.headers,
        }
        parts.update(changes)
        return SipUri(**parts)

    def with_param(self, name: str, value: str | None = None) -> SipUri:
        """The same URI with this parameter set."""
        return self.replace(params=self.params.with_param(name, value))

    def without_params(self, *names: str) -> SipUri:
        """The same URI without these parameters."""
        params = self.params.without(*names)
        return self if params is self.params else self.replace(params=params)

    def bare(self) -> SipUri:
        """The same URI without parameters and headers."""
        plain = self.params is NO_PARAMETERS and not self.headers
        return self if plain else self.replace(params=NO_PARAMETERS, headers="")

    def _identity(self) -> tuple[str, str | None, str | None, str, int | None]:
        user = None if self.user is None else _comparable(self.user)
        password = None if self.password is None else _comparable(self.password)
        return (self.scheme, user, password, self.host, self.port)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, SipUri):
            return NotImplemented
        if self._text == other._text:
            return True
        return (
            self._identity() == other._identity()
            and _same_params(self.params, other.params)
            and _header_set(self.headers) == _header_set(other.headers)
        )

    def __hash__(self) -> int:
        return hash(self._identity())

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"SipUri({self._text!r})"


def _same_params(ours: Parameters, theirs: Parameters) -> bool:
    if not ours and not theirs:
        return True
    left = {_comparable(name).lower(): _comparable(value or "").lower() for name, value in ours}
    right = {_comparable(name).lower(): _comparable(value or "").lower() for name, value in theirs}
    if any((name in left) != (name in right) for name in _STRICT_PARAMS):
        return False
    return all(right.get(name, value) == value for name, value in left.items())


def _header_set(headers: str) -> list[tuple[str, str]]:
    """Headers of a URI in comparable form: order does not count, names without case."""
    if not headers:
        return []
    pairs = (piece.partition("=") for piece in headers.split("&"))
    return sorted((_comparable(name).lower(), _comparable(value)) for name, _, value in pairs)


class TelUri:
    """A telephone number (RFC 3966).  `number` has no visual separators; ``==`` follows its section 5."""

    __slots__ = ("_text", "number", "params", "scheme")

    def __init__(self, text: str) -> None:
        """From the whole text, "tel:" included.  Raises MalformedUri."""
        match = _TEL.fullmatch(text, 4)
        if not match or text[:4].lower() != "tel:":
            raise MalformedUri("bad telephone number")
        self.scheme = "tel"
        self.number = re.sub(r"[-.()]", "", match[1]).lower()
        if not self.number.strip("+"):
            raise MalformedUri("telephone number without digits")
        try:
            self.params = Parameters.parse_uri(match[2] or "")
        except MalformedMessage as error:
            raise MalformedUri(error.reason) from None
        self._text = text

    @property
    def is_global(self) -> bool:
        """Whether the number is in global form (+...)."""
        return self.number.startswith("+")

    def _identity(self) -> tuple[str, frozenset[tuple[str, str]]]:
        pairs: list[tuple[str, str]] = []
        for name, value in self.params:
            lowered = _comparable(value or "").lower()
            if name.lower() in ("ext", "phone-context") and lowered[:1] in "+0123456789":
                lowered = re.sub(r"[-.()]", "", lowered)
            pairs.append((name.lower(), lowered))
        return (self.number, frozenset(pairs))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TelUri) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"TelUri({self._text!r})"


class OpaqueUri:
    """A URI of a scheme that SIP does not look into; compared as text, the scheme without case."""

    __slots__ = ("_text", "scheme")

    def __init__(self, text: str) -> None:
        """Raises MalformedUri if `text` is no absolute URI."""
        match = _OTHER.fullmatch(text)
        if not match or _FORBIDDEN.search(text):
            raise MalformedUri("bad URI")
        self.scheme = match[1].lower()
        self._text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OpaqueUri) and self.scheme + self._text[len(self.scheme) :] == (
            other.scheme + other._text[len(other.scheme) :]
        )

    def __hash__(self) -> int:
        return hash(self.scheme + self._text[len(self.scheme) :])

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"OpaqueUri({self._text!r})"


Uri = SipUri | TelUri | OpaqueUri


def _parse(text: str) -> Uri:
    match = _SIP.fullmatch(text)
    if match:
        return SipUri._from_match(match, text)
    scheme = text.partition(":")[0].lower()
    if scheme in ("sip", "sips"):
        raise MalformedUri("bad SIP URI")
    return TelUri(text) if scheme == "tel" else OpaqueUri(text)


parse_uri: Callable[[str], Uri] = Remembered(_parse, 2048).__getitem__
"""Any URI from its text. Raises MalformedUri (400)."""
