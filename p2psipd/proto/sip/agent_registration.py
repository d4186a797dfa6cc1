"""The user agent's registration (RFC 3261 section 10.2, RFC 5626 section 4): what to send and when (used by
`p2psipd.proto.sip.agent`)."""

from __future__ import annotations

from typing import Any, Final

from p2psipd.proto.sip.agent_client import USER_AGENT
from p2psipd.proto.sip.agent_io import AgentSettings, RegistrationChanged
from p2psipd.proto.sip.dialog import MAX_FORWARDS
from p2psipd.proto.sip.errors import MalformedUri
from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.message import Request, Response
from p2psipd.proto.sip.uri import SipUri, parse_uri

REFRESH_AT: Final = 0.9
"""The share of the granted time after which a registration is renewed."""
RETRY: Final = 30.0
RETRY_OTHERS: Final = 90.0
RETRY_MOST: Final = 1800.0
"""The first pause after a failure, the same while another flow stands, and the longest (RFC 5626 section 4.5)."""
KEEP_ALIVE_STREAM: Final = 120.0
KEEP_ALIVE_UDP: Final = 29.0
KEEP_ALIVE_WAIT: Final = 10.0
"""Longest time between keep-alives without Flow-Timer, and the wait for the answer (RFC 5626 section 4.4)."""
HOPELESS: Final = frozenset({401, 403, 404, 407})
"""Refusals that asking again won't mend: a wrong password, an unknown user."""


class Registration:
    """One binding at one registrar; with an instance in the settings it is the outbound flow of number `reg_id`.

    `registered` tells whether it stands. `keep_alive_at` is the instant of the next keep-alive, `answer_by` the one by
    which the last must have been answered; both None where the registrar did not agree to outbound.
    `cseq` is the last CSeq number used (whoever repeats a request with credentials moves it on); `due_at` the
    monotonic instant of the next request, None if none is planned. MalformedUri if the AOR is no sip: URI.
    """

    __slots__ = (
        "_call_id",
        "_expires",
        "_failures",
        "_keep_alive",
        "_random",
        "_settings",
        "_tag",
        "_uri",
        "answer_by",
        "cseq",
        "due_at",
        "flow",
        "keep_alive_at",
        "reg_id",
        "registered",
        "wanted",
    )

    def __init__(self, settings: AgentSettings, flow: Flow, random: Any, reg_id: int = 1) -> None:
        aor = parse_uri(settings.aor)
        if not isinstance(aor, SipUri):
            raise MalformedUri("an address of record is a sip: URI")
        self._uri = str(aor.replace(user=None, password=None).bare())
        self._settings = settings
        self._random = random
        self._call_id = f"{random.getrandbits(80):020x}"
        self._tag = f"{random.getrandbits(64):016x}"
        self._expires = settings.expires
        self._failures = 0
        self._keep_alive = 0.0
        self.flow = flow
        self.reg_id = reg_id
        self.registered = False
        self.cseq = 0
        self.due_at: float | None = None
        self.keep_alive_at: float | None = None
        self.answer_by: float | None = None
        self.wanted = False

    def want(self, wanted: bool) -> None:
        """Be registered from now on, or be so no more; `request` then says it to the registrar."""
        self.wanted = wanted
        self._expires = self._settings.expires

    def request(self) -> Request:
        """The REGISTER to send now; all have one Call-ID and rising CSeq numbers."""
        self.due_at = None
        self.cseq += 1
        contact = f"<{self._settings.contact}>"
        lines = [
            ("Max-Forwards", MAX_FORWARDS),
            ("From", f"<{self._settings.aor}>;tag={self._tag}"),
            ("To", f"<{self._settings.aor}>"),
            ("Call-ID", self._call_id),
            ("CSeq", f"{self.cseq} REGISTER"),
            ("Expires", str(self._expires if self.wanted else 0)),
            ("User-Agent", USER_AGENT),
        ]
        if self._settings.instance:
            contact += f';+sip.instance="<{self._settings.instance}>";reg-id={self.reg_id}'
            lines.append(("Supported", "path, outbound"))
        return Request("REGISTER", self._uri, [*lines, ("Contact", contact)])

    def answered(
        self, request: Request, status: int, reason: str, response: Response | None, now: float, *, others: bool = False
    ) -> RegistrationChanged | None:
        """Take the final answer (`response` None: there was none); what to tell, or None to send `request()` again.

        The latter is for 423: the registrar wants a longer interval (section 10.2.8). `others`: another flow stands.
        """
        removing = request.expires == 0
        number = self.reg_id - 1
        if response is not None and status < 300:
            self._failures = 0
            granted = 0 if removing else self._granted(response)
            self.registered = granted > 0
            if granted and self.wanted:
                self.due_at = now + max(1.0, granted * REFRESH_AT)
            self._plan_keep_alives(response, now)
            return RegistrationChanged(granted > 0, status, reason, granted, number)
        if response is not None and status == 423 and not removing:
            least = response.get("min-expires") or ""
            if least.isascii() and least.isdigit() and len(least) < 10 and int(least) > self._expires:
                self._expires = int(least)
                return None
        self._failures += 1
        self._forget()
        if self.wanted and status not in HOPELESS:
            first = RETRY_OTHERS if others else RETRY
            pause = min(first * 2 ** min(self._failures - 1, 10), RETRY_MOST)
            # Not all phones of a server that went away come back in one instant (RFC 5626 section 4.5).
            self.due_at = now + pause * (0.5 + self._random.getrandbits(16) / 131072)
        return RegistrationChanged(False, status, reason, 0, number)

    def _forget(self) -> None:
        """The flow is not to be relied on any more."""
        self.registered = False
        self.keep_alive_at = self.answer_by = None

    def _plan_keep_alives(self, response: Response, now: float) -> None:
        """Keep-alives as the registrar asks for them (RFC 5626 section 4.4.1), where it agreed to outbound."""
        if not self.registered or "outbound" not in response.require:
            self.keep_alive_at = self.answer_by = None
            return
        asked = response.get("flow-timer") or ""
        longest = KEEP_ALIVE_STREAM if self.flow.reliable else KEEP_ALIVE_UDP
        if asked.isascii() and asked.isdigit() and 0 < int(asked[:6]) <= 86400:
            longest = float(asked[:6])
        self._keep_alive = longest
        self._plan_next(now)

    def _plan_next(self, now: float) -> None:
        share = 0.8 + 0.2 * self._random.getrandbits(16) / 65536
        self.keep_alive_at = now + self._keep_alive * share

    def keep_alive_sent(self, now: float) -> None:
        """A keep-alive left; its answer must come within ten seconds."""
        self.answer_by = now + KEEP_ALIVE_WAIT
        self._plan_next(now)

    def next_timer(self) -> float | None:
        """When something is due."""
        times = [at for at in (self.due_at, self.keep_alive_at, self.answer_by) if at is not None]
        return min(times, default=None)

    def _granted(self, response: Response) -> int:
        """The seconds that the registrar granted this device: its Contact's parameter, else Expires."""
        own = parse_uri(self._settings.contact)
        for contact in response.contacts:
            if contact.uri == own and contact.expires is not None:
                return contact.expires
        return self._expires if response.expires is None else response.expires

    def connection_lost(self, now: float) -> None:
        """The connection by which the registrar reached us is gone: register anew soon, over a new one."""
        soon = now + 1 + self._random.getrandbits(16) / 65536
        self._forget()
        if self.wanted and (self.due_at is None or self.due_at > soon):
            self.due_at = soon
