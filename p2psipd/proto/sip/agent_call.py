"""One call of the user agent: what both its directions have in common (used by `p2psipd.proto.sip.agent`
alone)."""

from __future__ import annotations

from collections.abc import Hashable
from enum import Enum
from typing import Final, NamedTuple

from p2psipd.proto.sip.dialog import Dialog
from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.message import Request, Response
from p2psipd.proto.sip.sdp import (
    CONTENT_TYPE,
    INACTIVE,
    RECEIVE_ONLY,
    SEND_ONLY,
    SEND_RECEIVE,
    AudioParameters,
    Media,
    SessionDescription,
    agreed_audio,
    make_answer,
    make_offer,
    parse_sdp,
)
from p2psipd.proto.sip.session_timer import SessionTimer

T1: Final = 0.5
T2: Final = 4.0
ACK_WAIT: Final = 64 * T1
"""How long an answered call waits for its ACK (RFC 3261 section 13.3.1.4)."""


class CallState(Enum):
    """Where a call stands. An ANSWERED one has sent 2xx and waits for the ACK."""

    CALLING = "calling"
    CANCELLING = "cancelling"
    RINGING = "ringing"
    ANSWERED = "answered"
    ESTABLISHED = "established"
    ENDING = "ending"


class Unacknowledged(NamedTuple):
    """A 2xx that is sent again until its ACK comes: next at `at`, then after twice `interval`, given up at
    `until`."""

    transaction: str
    response: Response
    cseq: int
    at: float
    interval: float
    until: float


class Change(NamedTuple):
    """An offer of ours that is not answered yet: what was agreed before, and whether only the session is refreshed."""

    local: SessionDescription | None
    remote: SessionDescription | None
    audio: AudioParameters | None
    refresh: bool


class Call:
    """The state of one call.

    `change` is a re-INVITE of ours under way; one that is to be sent (again) waits until `change_at`. `held` says that
    we keep the far side on hold. `session` is the timer of RFC 4028. `updates` tells whether the far side takes UPDATE.
    `request` is the INVITE (ours or theirs), `transaction` its key or id in the transaction layer, `flow` the
    way of the last INVITE. `told` are the provisional statuses that the user has been told of.
    """

    __slots__ = (
        "audio",
        "change",
        "change_at",
        "dialog",
        "ending",
        "flow",
        "held",
        "host",
        "key",
        "local",
        "outgoing",
        "port",
        "ref",
        "remote",
        "request",
        "session",
        "session_id",
        "state",
        "tag",
        "told",
        "transaction",
        "unacknowledged",
        "updates",
        "version",
    )

    def __init__(
        self, ref: int, request: Request, flow: Flow, host: str, session_id: int, *, outgoing: bool, tag: str
    ) -> None:
        self.ref = ref
        self.request = request
        self.flow = flow
        self.host = host
        self.session_id = session_id
        self.outgoing = outgoing
        self.tag = tag
        self.state = CallState.CALLING if outgoing else CallState.RINGING
        self.port = 0
        self.version = 0
        self.key: Hashable = None
        self.transaction = ""
        self.dialog: Dialog | None = None
        self.local: SessionDescription | None = None
        self.remote: SessionDescription | None = None
        self.audio: AudioParameters | None = None
        self.unacknowledged: Unacknowledged | None = None
        self.ending: str | None = None
        self.told: set[int] = set()
        self.held = False
        self.change: Change | None = None
        self.change_at: float | None = None
        self.session: SessionTimer | None = None
        self.updates = False

    def next_timer(self) -> float | None:
        """The next instant at which something is due for this call."""
        times = [self.change_at] if self.change_at is not None else []
        if self.unacknowledged is not None:
            times.append(self.unacknowledged.at)
        if self.session is not None and self.state is CallState.ESTABLISHED:
            times.append(self.session.at)
        return min(times, default=None)

    def offer(self) -> bytes:
        """Our session description as an offer, one version newer than the last.

        On hold we want nothing sent (RFC 3264 section 8.4). Streams of before keep their places (section 8).
        """
        self.version += 1
        direction = SEND_RECEIVE
        if self.held:
            direction = SEND_ONLY if self._heard() else INACTIVE
        made = make_offer(self.host, self.port, self.session_id, version=self.version, direction=direction)
        if self.local is not None and len(self.local.media) > 1:
            (audio,) = made.media
            made = made._replace(
                media=tuple(
                    audio if media.port else Media(media.kind, 0, media.protocol, media.formats[:1])
                    for media in self.local.media
                )
            )
        self.local = made
        return made.encode()

    def repeat_offer(self) -> bytes:
        """The description that holds already, to refresh a session: the same version says that nothing changes."""
        return self.offer() if self.local is None else self.local.encode()

    def _heard(self) -> bool:
        """Does the far side want to hear us, as it said last?"""
        if self.remote is None:
            return True
        directions = [self.remote.direction_of(media) for media in self.remote.media if media.port]
        return not directions or directions[0] in (SEND_RECEIVE, RECEIVE_ONLY)

    def describe(self) -> bytes:
        """Our part of an exchange that we answer with 2xx: the answer to what was offered, else an offer.

        SdpError (488) if the offer has nothing that we speak.
        """
        if self.remote is None:
            return self.offer()
        self.version += 1
        self.local = make_answer(
            self.remote, self.host, self.port, self.session_id, version=self.version, holding=self.held
        )
        self.audio = agreed_audio(self.local, self.remote)
        return self.local.encode()

    def take_answer(self, body: bytes) -> AudioParameters:
        """The far side's answer to our offer, or none where it was given before; SdpError if nothing was
        agreed."""
        if body:
            self.remote = parse_sdp(body)
        if self.local is None or self.remote is None:
            raise SipError("the call was accepted without a session description", status=488)
        self.audio = agreed_audio(self.local, self.remote)
        return self.audio


def session_of(message: Request | Response) -> SessionDescription | None:
    """The session description that a message carries, None without a body; SipError 415 for another type of
    body."""
    if not message.body:
        return None
    kind = (message.content_type or "").partition(";")[0].strip().lower()
    if kind != CONTENT_TYPE:
        raise SipError(f"only {CONTENT_TYPE} is understood", status=415)
    return parse_sdp(message.body)
