"""Session timers of a user agent (RFC 4028): who refreshes a call, when, and when it counts as dead."""

from __future__ import annotations

from typing import Final, NamedTuple

from p2psipd.proto.sip.message import Request, Response

OPTION: Final = "timer"
MIN_SE: Final = 90
"""The shortest session interval that we accept, in seconds (section 5)."""
_MOST: Final = 2**31


class SessionTimer(NamedTuple):
    """The session interval in seconds, whether we refresh, and the instant of the refresh, or of giving up."""

    interval: int
    ours: bool
    at: float

    @classmethod
    def begin(cls, interval: int, ours: bool, now: float) -> SessionTimer:
        """A timer that starts at `now`: half the interval for a refresh, else the end of section 10."""
        if ours:
            return cls(interval, True, now + interval / 2)
        return cls(interval, False, now + interval - min(32.0, interval / 3))


class Expiry(NamedTuple):
    """A Session-Expires header: seconds, and "uac", "uas" or "" for the refresher."""

    seconds: int
    refresher: str

    def __str__(self) -> str:
        return f"{self.seconds};refresher={self.refresher}" if self.refresher else str(self.seconds)


def session_expires(message: Request | Response) -> Expiry | None:
    """The Session-Expires of a message; None without one, or with one that can't be read."""
    value = message.get("session-expires")
    if value is None:
        return None
    seconds, _, rest = value.partition(";")
    seconds = seconds.strip()
    if not (seconds.isascii() and seconds.isdigit()) or len(seconds) > 10 or int(seconds) > _MOST:
        return None
    refresher = ""
    for parameter in rest.split(";"):
        name, _, given = parameter.partition("=")
        if name.strip().lower() == "refresher" and given.strip().lower() in ("uac", "uas"):
            refresher = given.strip().lower()
    return Expiry(int(seconds), refresher)


def too_brief(request: Request) -> bool:
    """Whether a request asks for an interval below ours although it would understand 422 (section 9)."""
    asked = session_expires(request)
    return asked is not None and asked.seconds < MIN_SE and OPTION in request.supported


def answer_request(request: Request, now: float) -> tuple[list[tuple[str, str]], SessionTimer | None]:
    """The headers for our 2xx to an INVITE or UPDATE, and the timer that holds from then on (section 9)."""
    asked = session_expires(request)
    if asked is None:
        return [], None
    interval = max(asked.seconds, MIN_SE)
    if OPTION not in request.supported:
        # A proxy asked, and the caller knows nothing of it: the refreshing is ours.
        return [("Session-Expires", str(Expiry(interval, "uas")))], SessionTimer.begin(interval, True, now)
    refresher = asked.refresher or "uac"
    headers = [("Session-Expires", str(Expiry(interval, refresher))), ("Require", OPTION)]
    return headers, SessionTimer.begin(interval, refresher == "uas", now)


def take_answer(response: Response, now: float) -> SessionTimer | None:
    """The timer that a 2xx to our INVITE or UPDATE starts (section 7.2); None without Session-Expires."""
    granted = session_expires(response)
    if granted is None or not granted.seconds:
        return None
    return SessionTimer.begin(granted.seconds, granted.refresher != "uas", now)
