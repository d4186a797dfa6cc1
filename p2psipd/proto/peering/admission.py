"""May this request of a peer come in?  The receiving side's checks in the order of their cost.

Whom the TLS connection belongs to is known (``PeeringPolicy.client``).  Then, for each request: does that still
hold, is the peer authorised, is the request for us, is its Route ours, may this peer send in the name of this
From, and last, since it can cost a fetch and a signature, its Identity.  Every answer is a record of the decision
for the log, counted by ``step``.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Final, NamedTuple

from p2psipd.proto.identity.policy import CertificateRefused, normal_domain
from p2psipd.proto.peering.identity import from_domain
from p2psipd.proto.peering.peers import UNSUPPORTED_PEER, Decision, PeerIdentity, PeeringPolicy
from p2psipd.proto.peering.verification import IdentityVerifier, Verification
from p2psipd.proto.sip.message import Request
from p2psipd.proto.sip.uri import SipUri, TelUri, Uri

__all__ = ["Admission", "admit"]

NOT_FOUND: Final = (404, "Not Found")
UNEXPECTED_ROUTE: Final = (403, "Unexpected Route")
#: Never refused for want of an Identity: nobody could sign a CANCEL, or answer the refusal of an ACK.
_UNSIGNED: Final = frozenset({"ACK", "CANCEL"})


#: What refused a request of an authorised peer.
_WORDS: Final = {
    "request-uri": "for no domain of ours, nor of a federation through us",
    "route": "a Route that no edge of ours wrote, or none inside a dialog",
    "from": "neither the connection's certificate nor a federation names the domain of From",
    "dialog": "the dialog was begun with another peer",
    "identity": "no Identity header that is accepted from this domain",
}


class Admission(NamedTuple):
    """What was decided about one request.

    ``status`` and ``reason`` answer it (an ACK is dropped instead); 0 lets it in.  ``step`` is what refused it: a
    step of the certificate's check, "deny", "none" (no rule for this peer), "request-uri", "route", "from", or a
    step of the verification.  ``decision`` says why the peer is authorised or not, ``verification`` what its
    Identity is worth.
    """

    status: int
    reason: str
    step: str
    decision: Decision
    from_domain: str = ""
    verification: Verification = Verification()

    def __str__(self) -> str:
        if not self.status:
            kind = self.verification.kind.value if self.verification.kind else "no identity"
            return f"admitted from {self.from_domain or '?'}: {self.decision}; {self.verification.verstat} ({kind})"
        where = f"domain {self.from_domain or self.decision.domain or '?'}"
        authority = self.verification.authority or self.decision.authority or "?"
        return f"{self.status} {self.reason}: step {self.step}, {where}, authority {authority}: {self.why}"

    @property
    def why(self) -> str:
        """Why it was refused, in words."""
        words = _WORDS.get(self.step, "") if self.decision.allowed else ""
        return self.verification.detail or words or str(self.decision)


async def admit(
    request: Request,
    peer: PeerIdentity,
    policy: PeeringPolicy,
    verifier: IdentityVerifier,
    wall: float,
    *,
    serves: Callable[[str], bool],
    owns: Callable[[SipUri], bool],
) -> Admission:
    """Judge ``request``, which came over a connection of ``peer``, at ``wall``.

    ``serves(domain)`` says whether a domain is ours, ``owns(uri)`` whether a Route value is one that we (or
    another edge of ours) recorded.  A request that is let in with an Identity is remembered against replay.
    """
    try:
        peer, decision, *_ = policy.standing(peer, wall)
    except CertificateRefused as refused:
        decision = Decision(False, refused.step.value, refused.domain, refused.authority)
        return Admission(*UNSUPPORTED_PEER, decision.step, decision)
    if not decision.allowed:
        return Admission(*UNSUPPORTED_PEER, decision.step, decision)
    domain = from_domain(request)
    inside = request.to_tag is not None
    if request.method == "CANCEL":
        return Admission(0, "", "", decision, domain)
    if misrouted := _misrouted(request, inside, serves, owns):
        return Admission(*misrouted, decision, domain)
    if not inside and not policy.may_send_from(peer, domain, _domain_of(request.uri)):
        return Admission(*UNSUPPORTED_PEER, "from", decision, domain)
    if request.method in _UNSIGNED:
        return Admission(0, "", "", decision, domain)
    settings = policy.settings(domain)
    hosts: Container[str] | None = None
    if not settings.any_identity_host:
        hosts = peer.authorities if domain in peer.authorities else peer.domains | {domain}
    verification = await verifier.verify(request, policy, wall, hosts, required=False if inside else None)
    if verification.status:
        return Admission(verification.status, verification.reason, verification.step, decision, domain, verification)
    verifier.accepted(verification, wall)
    return Admission(0, "", "", decision, domain, verification)


def _misrouted(
    request: Request, inside: bool, serves: Callable[[str], bool], owns: Callable[[SipUri], bool]
) -> tuple[int, str, str] | None:
    """The answer to a request that asks us to relay: (status, reason, step)."""
    routes = request.routes
    ours = 0
    for route in routes:
        if not isinstance(route.uri, SipUri) or not owns(route.uri):
            break
        ours += 1
    if inside:
        # Where the request goes on is in our own Route value, and nowhere else.
        return None if ours else (*UNEXPECTED_ROUTE, "route")
    if len(routes) > ours:
        return (*UNEXPECTED_ROUTE, "route")
    return None if _is_for_us(request.uri, serves) else (*NOT_FOUND, "request-uri")


def _domain_of(uri: Uri) -> str:
    return normal_domain(uri.host) if isinstance(uri, SipUri) else ""


def _is_for_us(uri: Uri, serves: Callable[[str], bool]) -> bool:
    """A domain of ours, sip or sips; or a bare telephone number, which the number aliases decide about."""
    if isinstance(uri, SipUri):
        return serves(normal_domain(uri.host))
    return isinstance(uri, TelUri)
