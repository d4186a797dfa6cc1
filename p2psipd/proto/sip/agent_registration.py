"""The user agent's registration (RFC 3261 section 10.2): what to send and when (used by `p2psipd.proto.sip.agent`)."""

from __future__ import annotations

from typing import Any, Final

from p2psipd.proto.sip.agent_io import AgentSettings, RegistrationChanged
from p2psipd.proto.sip.dialog import MAX_FORWARDS
from p2psipd.proto.sip.errors import MalformedUri
from p2psipd.proto.sip.message import Request, Response
from p2psipd.proto.sip.uri import SipUri, parse_uri

USER_AGENT: Final = "p2psipd-ua"
REFRESH_AT: Final = 0.9
"""The share of the granted time after which a registration is renewed."""
RETRY: Final = 30.0
RETRY_MOST: Final = 1800.0
HOPELESS: Final = frozenset({401, 403, 404, 407})
"""Refusals that asking again won't mend: a wrong password, an unknown user."""


class Registration:
    """One binding at one registrar.

    `cseq` is the last CSeq number used (whoever repeats a request with credentials moves it on); `due_at` the
    monotonic instant of the next request, None if none is planned. MalformedUri if the AOR is no sip: URI.
    """

    __slots__ = (
        "_call_id",
        "_expires",
        "_failures",
        "_random",
        "_settings",
        "_tag",
        "_uri",
        "cseq",
        "due_at",
        "wanted",
    )

    def __init__(self, settings: AgentSettings, random: Any) -> None:
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
        self.cseq = 0
        self.due_at: float | None = None
        self.wanted = False

    def want(self, wanted: bool) -> None:
        """Be registered from now on, or be so no more; `request` then says it to the registrar."""
        self.wanted = wanted
        self._expires = self._settings.expires

    def request(self) -> Request:
        """The REGISTER to send now; all have one Call-ID and rising CSeq numbers."""
        self.due_at = None
        self.cseq += 1
        return Request(
            "REGISTER",
            self._uri,
            [
                ("Max-Forwards", MAX_FORWARDS),
                ("From", f"<{self._settings.aor}>;tag={self._tag}"),
                ("To", f"<{self._settings.aor}>"),
                ("Call-ID", self._call_id),
                ("CSeq", f"{self.cseq} REGISTER"),
                ("Contact", f"<{self._settings.contact}>"),
                ("Expires", str(self._expires if self.wanted else 0)),
                ("User-Agent", USER_AGENT),
            ],
        )

    def answered(
        self, request: Request, status: int, reason: str, response: Response | None, now: float
    ) -> RegistrationChanged | None:
        """Take the final answer (`response` None: there was none); what to tell, or None to send `request()` again.

        The latter is for 423: the registrar wants a longer interval (section 10.2.8).
        """
        removing = request.expires == 0
        if response is not None and status < 300:
            self._failures = 0
            granted = 0 if removing else self._granted(response)
            if granted and self.wanted:
                self.due_at = now + max(1.0, granted * REFRESH_AT)
            return RegistrationChanged(granted > 0, status, reason, granted)
        if response is not None and status == 423 and not removing:
            least = response.get("min-expires") or ""
            if least.isascii() and least.isdigit() and len(least) < 10 and int(least) > self._expires:
                self._expires = int(least)
                return None
        self._failures += 1
        if self.wanted and status not in HOPELESS:
            pause = min(RETRY * 2 ** min(self._failures - 1, 10), RETRY_MOST)
            # Not all phones of a server that went away come back in one instant (RFC 5626 section 4.5).
            self.due_at = now + pause * (0.5 + self._random.getrandbits(16) / 131072)
        return RegistrationChanged(False, status, reason)

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
        if self.wanted and (self.due_at is None or self.due_at > soon):
            self.due_at = soon
