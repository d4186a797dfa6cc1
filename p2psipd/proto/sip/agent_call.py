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
    AudioParameters,
    SessionDescription,
    agreed_audio,
    make_answer,
    make_offer,
    parse_sdp,
)

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


class Call:
    """The state of one call.

    `request` is the INVITE (ours or theirs), `transaction` its key or id in the transaction layer, `flow` the
    way of the last INVITE. `told` are the provisional statuses that the user has been told of.
    """

    __slots__ = (
        "audio",
        "dialog",
        "ending",
        "flow",
        "host",
        "key",
        "local",
        "outgoing",
        "port",
        "ref",
        "remote",
        "request",
        "session_id",
        "state",
        "tag",
        "told",
        "transaction",
        "unacknowledged",
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

    def offer(self) -> bytes:
        """Our session description as an offer, one version newer than the last."""
        self.version += 1
        self.local = make_offer(self.host, self.port, self.session_id, version=self.version)
        return self.local.encode()

    def describe(self) -> bytes:
        """Our part of an exchange that we answer with 2xx: the answer to what was offered, else an offer.

        SdpError (488) if the offer has nothing that we speak.
        """
        if self.remote is None:
            return self.offer()
        self.version += 1
        self.local = make_answer(self.remote, self.host, self.port, self.session_id, version=self.version)
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
