"""What goes into and comes out of the user agent core (`p2psipd.proto.sip.agent`).

Calls are named by numbers: those that the local user starts by positive numbers of the user's choice,
incoming ones by negative numbers that the core gives. Besides these, the core takes `MessageReceived` and
`TransportFailed` of the transaction layer, and gives back its `SendMessage`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.sdp import AudioParameters


class AgentSettings(NamedTuple):
    """Who the agent is.

    `aor` is its address of record (`sip:alice@overlay.example`), `contact` the URI under which this device is
    reached, `media_host` the IP address for its session descriptions. With `server` the agent's flow leads to
    a registrar and outbound proxy; without, calls go straight to the IP address in the called URI. `expires`
    is the registration asked for, in seconds. More than `max_calls` at once are refused with 486. `instance`
    ("urn:uuid:...") makes the agent an outbound user agent (RFC 5626): one registration for each flow, kept alive.
    `session_seconds` is the session interval to ask for in our calls (RFC 4028), 0 to ask for none.
    """

    aor: str
    contact: str
    media_host: str
    user: str
    password: str = ""
    server: bool = True
    expires: int = 600
    max_calls: int = 16
    instance: str = ""
    session_seconds: int = 0


# ---- inputs: what the local user wants


class Register(NamedTuple):
    """Register, and stay registered."""


class Unregister(NamedTuple):
    """Remove this device's registration and refresh it no more."""


class Invite(NamedTuple):
    """Call `target` (a URI); our audio is received at `port`."""

    call: int
    target: str
    port: int


class Answer(NamedTuple):
    """Answer an incoming call; our audio is received at `port`. Unknown or answered calls: nothing
    happens."""

    call: int
    port: int


class Reject(NamedTuple):
    """Refuse an incoming call with a final status of 300 to 699."""

    call: int
    status: int = 486


class HangUp(NamedTuple):
    """End a call in whatever state: CANCEL, a refusal, or BYE. CallEnded follows when it is over."""

    call: int


class Hold(NamedTuple):
    """Put the far side on hold by re-INVITE (RFC 3264 section 8.4), or with `on` False take it back.

    CallChanged or ChangeRefused follows. A call that is not established is left as it is.
    """

    call: int
    on: bool = True


class KeepAliveAnswered(NamedTuple):
    """The far side of a flow answered a keep-alive (RFC 5626 section 4.4)."""

    flow: Flow


class SendText(NamedTuple):
    """Send a MESSAGE (RFC 3428) of plain text to `target`; RequestAnswered follows with `ref`."""

    ref: int
    target: str
    text: str


class SendOptions(NamedTuple):
    """Ask `target` what it can do (RFC 3261 section 11); RequestAnswered follows with `ref`."""

    ref: int
    target: str


# ---- outputs: what happened


class RegistrationChanged(NamedTuple):
    """The registrar answered (or nobody did: 408, 503). `expires` is seconds granted, 0 when not
    registered; `registrar` the number of the flow, counted from 0."""

    registered: bool
    status: int
    reason: str
    expires: int = 0
    registrar: int = 0


class SendKeepAlive(NamedTuple):
    """Send a keep-alive (RFC 5626 section 4.4): CRLF CRLF on a connection, over UDP a STUN Binding request."""

    flow: Flow


class CloseFlow(NamedTuple):
    """A flow whose far side is silent: close its connection, if it has one."""

    flow: Flow


class IncomingCall(NamedTuple):
    """Somebody calls; the core has answered 180 and waits for Answer or Reject. `caller` is the From URI."""

    call: int
    caller: str
    called: str


class CallRinging(NamedTuple):
    """The far side said 180 or another provisional answer above 100, told once for each status."""

    call: int
    status: int


class CallEstablished(NamedTuple):
    """2xx and ACK were exchanged; audio flows as `audio` says."""

    call: int
    audio: AudioParameters


class CallChanged(NamedTuple):
    """A re-INVITE or UPDATE, theirs or ours, changed the audio (another address, hold, resumption)."""

    call: int
    audio: AudioParameters


class ChangeRefused(NamedTuple):
    """Our re-INVITE was refused; the call goes on as it was (RFC 3261 section 14.1)."""

    call: int
    status: int
    reason: str


class DigitsReceived(NamedTuple):
    """Keys that the far side sent in an INFO (application/dtmf-relay or application/dtmf)."""

    call: int
    digits: str


class CallEnded(NamedTuple):
    """The call is over and its number free. `cause` is for people; `status` is the SIP status that ended an
    attempt to call, 200 when an established call was ended by BYE."""

    call: int
    cause: str
    status: int


class TextReceived(NamedTuple):
    """A MESSAGE with plain text came from the From URI `sender`; it has been answered 200."""

    sender: str
    text: str


class RequestAnswered(NamedTuple):
    """The final answer to SendText or SendOptions (408 or 503 if there was none)."""

    ref: int
    status: int
    reason: str


HUNG_UP_HERE: Final = "hung up here"
HUNG_UP_THERE: Final = "hung up by the far side"
CANCELLED: Final = "cancelled"
