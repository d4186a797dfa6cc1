"""Session descriptions (RFC 8866) and the offer and answer of an audio call (RFC 3264).

Lenient in reading (unknown lines are kept or passed over, bare LF is taken), exact in writing. What is
bounded: a description of more than 64 KiB or with more than 64 media descriptions is refused.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from p2psipd.proto.media.g711 import PCMA, PCMU
from p2psipd.proto.sip.errors import SipError

CONTENT_TYPE: Final = "application/sdp"
MAX_OCTETS: Final = 65536
MAX_MEDIA: Final = 64

SEND_RECEIVE: Final = "sendrecv"
SEND_ONLY: Final = "sendonly"
RECEIVE_ONLY: Final = "recvonly"
INACTIVE: Final = "inactive"
_MIRRORED: Final = {SEND_RECEIVE: SEND_RECEIVE, SEND_ONLY: RECEIVE_ONLY, RECEIVE_ONLY: SEND_ONLY, INACTIVE: INACTIVE}

EVENTS: Final = "telephone-event"
EVENT_PAYLOAD: Final = 101
"""The payload type under which we offer telephone events (RFC 4733); dynamic, 101 by habit of all phones."""
_DIGITS: Final = "0-15"

STATIC_PAYLOADS: Final = {"0": PCMU, "8": PCMA}
"""Payload types that need no rtpmap (RFC 3551 section 6) and that we speak."""
_PAYLOAD_OF: Final = {codec: payload for payload, codec in STATIC_PAYLOADS.items()}


class SdpError(SipError):
    """A session description that can't be used: 488 to an offer (RFC 3261 section 21.4.26), the end of a call
    for an answer."""

    status = 488


class Media(NamedTuple):
    """One media description: `m=kind port protocol formats`, its own connection host if it has one,
    attributes.

    `attributes` are (name, value) in their order; a property attribute has None for its value.
    """

    kind: str
    port: int
    protocol: str
    formats: tuple[str, ...]
    host: str | None = None
    attributes: tuple[tuple[str, str | None], ...] = ()

    @property
    def direction(self) -> str | None:
        """sendrecv, sendonly, recvonly or inactive where the media says it itself."""
        return next((name for name, _ in self.attributes if name in _MIRRORED), None)

    def codec_of(self, payload: str) -> str | None:
        """PCMU or PCMA if that is what `payload` stands for here (8 kHz, one channel), else None."""
        mapping = self._mapping(payload)
        if mapping is None:
            return STATIC_PAYLOADS.get(payload)
        encoding, _, rate = mapping.upper().partition("/")
        return encoding if encoding in _PAYLOAD_OF and rate in ("8000", "8000/1") else None

    @property
    def events(self) -> int | None:
        """The payload type of telephone events at 8 kHz (RFC 4733 section 7.1.1), None without them."""
        for payload in self.formats:
            mapping = self._mapping(payload)
            if mapping is not None and mapping.lower() == f"{EVENTS}/8000" and payload.isdigit() and len(payload) < 4:
                return int(payload) if int(payload) < 128 else None
        return None

    def _mapping(self, payload: str) -> str | None:
        """What rtpmap says of a payload type."""
        for name, value in self.attributes:
            if name == "rtpmap" and value is not None and value.partition(" ")[0] == payload:
                return value.partition(" ")[2].strip()
        return None


class SessionDescription(NamedTuple):
    """A session description: origin, connection host, attributes of the session, and its media."""

    session_id: int
    version: int
    origin_host: str
    host: str | None
    media: tuple[Media, ...]
    attributes: tuple[tuple[str, str | None], ...] = ()
    name: str = "-"

    def encode(self) -> bytes:
        """The description's octets, CRLF line ends (RFC 8866 section 5)."""
        lines = ["v=0", f"o=- {self.session_id} {self.version} IN {_address(self.origin_host)}", f"s={self.name}"]
        if self.host is not None:
            lines.append(f"c=IN {_address(self.host)}")
        lines.append("t=0 0")
        lines += [_attribute(name, value) for name, value in self.attributes]
        for media in self.media:
            lines.append(f"m={media.kind} {media.port} {media.protocol} {' '.join(media.formats)}")
            if media.host is not None:
                lines.append(f"c=IN {_address(media.host)}")
            lines += [_attribute(name, value) for name, value in media.attributes]
        return "".join(line + "\r\n" for line in lines).encode()

    def host_of(self, media: Media) -> str | None:
        """Where the media is wanted: its own connection line, else the session's."""
        return media.host or self.host

    def direction_of(self, media: Media) -> str:
        """The media's direction: its own, else the session's, else sendrecv (RFC 8866 section 6.7)."""
        own = media.direction
        if own is not None:
            return own
        return next((name for name, _ in self.attributes if name in _MIRRORED), SEND_RECEIVE)


class AudioParameters(NamedTuple):
    """What offer and answer agreed on: where to send, the payload type and codec, and what flows.

    `sending` and `receiving` are ours, after both sides' directions; `host` is "" while the far side holds
    the call by address 0.0.0.0 (RFC 3264 section 8.4). `events` is the payload type of telephone events, None
    if the far side takes none.
    """

    host: str
    port: int
    payload_type: int
    codec: str
    sending: bool
    receiving: bool
    events: int | None = None


def _address(host: str) -> str:
    return f"IP6 {host}" if ":" in host else f"IP4 {host}"


def _attribute(name: str, value: str | None) -> str:
    return f"a={name}" if value is None else f"a={name}:{value}"


def _number(text: str, limit: int, what: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 20 or int(text) > limit:
        raise SdpError(f"{what} is not a number up to {limit}")
    return int(text)


def _parse_connection(value: str) -> str:
    fields = value.split()
    if len(fields) != 3 or fields[0] != "IN" or fields[1] not in ("IP4", "IP6"):
        raise SdpError("a connection line is 'c=IN IP4|IP6 address'")
    return fields[2].partition("/")[0]


def _parse_media(value: str) -> Media:
    fields = value.split()
    if len(fields) < 4:
        raise SdpError("a media line is 'm=kind port protocol formats'")
    port = _number(fields[1].partition("/")[0], 65535, "the media port")
    return Media(fields[0], port, fields[2], tuple(fields[3:]))


def _parse_origin(value: str) -> tuple[int, int, str]:
    fields = value.split()
    if len(fields) != 6:
        raise SdpError("an origin line has six fields")
    return _number(fields[1], 10**20, "the session id"), _number(fields[2], 10**20, "the version"), fields[5]


def parse_sdp(body: bytes) -> SessionDescription:
    """Read a session description; SdpError if it is none (RFC 8866 section 5)."""
    if len(body) > MAX_OCTETS:
        raise SdpError(f"a session description is at most {MAX_OCTETS} octets long")
    lines = [line.rstrip("\r") for line in body.decode("utf-8", "replace").split("\n")]
    if lines[0] != "v=0":
        raise SdpError("a session description begins with 'v=0'")
    origin: tuple[int, int, str] | None = None
    host: str | None = None
    name = "-"
    session_attributes: list[tuple[str, str | None]] = []
    media: list[Media] = []
    attributes = session_attributes
    for line in lines[1:]:
        if not line:
            continue
        kind, equals, value = line.partition("=")
        if not equals or len(kind) != 1:
            raise SdpError("a line of a session description is 'letter=value'")
        match kind:
            case "o" if not media:
                origin = _parse_origin(value)
            case "s" if not media:
                name = value
            case "c" if not media:
                host = _parse_connection(value)
            case "c":
                media[-1] = media[-1]._replace(host=_parse_connection(value))
            case "a":
                attribute, colon, text = value.partition(":")
                attributes.append((attribute.strip(), text.strip() if colon else None))
            case "m":
                if len(media) == MAX_MEDIA:
                    raise SdpError(f"a session description has at most {MAX_MEDIA} media")
                _close_media(media, attributes)
                media.append(_parse_media(value))
                attributes = []
    if origin is None:
        raise SdpError("a session description has an origin line")
    _close_media(media, attributes)
    return SessionDescription(*origin, host, tuple(media), tuple(session_attributes), name)


def _close_media(media: list[Media], attributes: list[tuple[str, str | None]]) -> None:
    """Give the last media its attributes, if there is one (before it they are the session's)."""
    if media:
        media[-1] = media[-1]._replace(attributes=tuple(attributes))


def _audio(port: int, codecs: tuple[tuple[str, str], ...], direction: str, events: int | None) -> Media:
    """An audio description of `codecs` as (payload, codec) and telephone events, 20 ms a packet."""
    maps = [("rtpmap", f"{payload} {codec}/8000") for payload, codec in codecs]
    payloads = [payload for payload, _ in codecs]
    if events is not None:
        maps += [("rtpmap", f"{events} {EVENTS}/8000"), ("fmtp", f"{events} {_DIGITS}")]
        payloads.append(str(events))
    return Media("audio", port, "RTP/AVP", tuple(payloads), None, (*maps, ("ptime", "20"), (direction, None)))


def make_offer(
    host: str,
    port: int,
    session_id: int,
    *,
    version: int = 1,
    codecs: tuple[str, ...] = (PCMU, PCMA),
    direction: str = SEND_RECEIVE,
) -> SessionDescription:
    """An offer of one audio stream received at host:port, best codec first (RFC 3264 section 5)."""
    audio = _audio(port, tuple((_PAYLOAD_OF[codec], codec) for codec in codecs), direction, EVENT_PAYLOAD)
    return SessionDescription(session_id, version, host, host, (audio,))


def make_answer(
    offer: SessionDescription,
    host: str,
    port: int,
    session_id: int,
    *,
    version: int = 1,
    codecs: tuple[str, ...] = (PCMU, PCMA),
    holding: bool = False,
) -> SessionDescription:
    """The answer that takes the offer's first audio stream we can speak and refuses the rest (RFC 3264
    section 6).

    The offerer's order of codecs decides. While we are `holding` we want nothing sent to us, whatever is offered
    (section 8.4). SdpError if no stream has a codec of ours: the call is then
    answered 488.
    """
    answered: list[Media] = []
    taken = False
    for media in offer.media:
        chosen = None if taken else _usable(media, codecs)
        if chosen is None:
            # A refused stream stays in its place with port 0 and at least one format.
            answered.append(Media(media.kind, 0, media.protocol, media.formats[:1]))
            continue
        taken = True
        direction = _MIRRORED[offer.direction_of(media)]
        if holding:
            direction = SEND_ONLY if direction in (SEND_RECEIVE, SEND_ONLY) else INACTIVE
        audio = _audio(port, (chosen,), direction, media.events)
        answered.append(audio._replace(protocol=media.protocol))
    if not taken:
        raise SdpError(f"the offer has no audio in {' or '.join(codecs)} over RTP/AVP")
    return SessionDescription(session_id, version, host, host, tuple(answered))


def _usable(media: Media, codecs: tuple[str, ...]) -> tuple[str, str] | None:
    """The first (payload, codec) of a media that we can speak."""
    if media.kind != "audio" or media.protocol != "RTP/AVP" or not media.port:
        return None
    for payload in media.formats:
        codec = media.codec_of(payload)
        if codec in codecs and payload.isascii() and payload.isdigit() and int(payload) < 128:
            return payload, codec
    return None


def agreed_audio(local: SessionDescription, remote: SessionDescription) -> AudioParameters:
    """What a finished exchange agreed on, whichever side offered; SdpError if no audio stream remains.

    Streams are matched by position (RFC 3264 section 6); the codec is the far side's first that we named as
    well.
    """
    if len(local.media) != len(remote.media):
        raise SdpError("an answer has as many media descriptions as its offer")
    for ours, theirs in zip(local.media, remote.media, strict=True):
        if not ours.port or not theirs.port or ours.kind != "audio" or theirs.kind != "audio":
            continue
        spoken = {ours.codec_of(payload) for payload in ours.formats} - {None}
        chosen = _usable(theirs, tuple(codec for codec in spoken if codec is not None))
        host = remote.host_of(theirs)
        if chosen is None or host is None:
            continue
        payload, codec = chosen
        mine, other = local.direction_of(ours), remote.direction_of(theirs)
        return AudioParameters(
            "" if host in ("0.0.0.0", "::") else host,
            theirs.port,
            int(payload),
            codec,
            mine in (SEND_RECEIVE, SEND_ONLY) and other in (SEND_RECEIVE, RECEIVE_ONLY),
            mine in (SEND_RECEIVE, RECEIVE_ONLY) and other in (SEND_RECEIVE, SEND_ONLY),
            theirs.events if ours.events is not None else None,
        )
    raise SdpError("offer and answer share no audio stream")
