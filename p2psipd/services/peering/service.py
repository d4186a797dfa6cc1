"""Direct peering as one service: the policy in force and its reload, our certificates, what an operator asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from twisted.application.service import Service
from twisted.logger import Logger

from p2psipd.config.peering import Peering
from p2psipd.net.certificate_fetch import CertificateFetcher
from p2psipd.net.certificate_server import CertificateServer
from p2psipd.net.peer_tls import PeerTls
from p2psipd.net.sip_transports import Limits
from p2psipd.proto.dns import Ask
from p2psipd.proto.peering.crossing import Crossings
from p2psipd.proto.peering.own_certificates import warnings_of
from p2psipd.proto.peering.replay import ReplayCache
from p2psipd.proto.peering.verification import IdentityVerifier
from p2psipd.proto.sip.flow import Address
from p2psipd.proto.sip.locating import Query, Target
from p2psipd.proto.sip.shared_secret import SharedSecret
from p2psipd.proto.sip.uri import Uri
from p2psipd.services.peering.connections import PeerConnections
from p2psipd.services.peering.edge import PeeringEdge
from p2psipd.services.peering.explain import explain
from p2psipd.services.peering.outbound import Outbound, Owner

_DAY: Final = 86_400

Find = Callable[[Query], Awaitable[Sequence[Target] | None]]


class PeeringService(Service):
    """One edge. `edge` goes to the SIP service; `emergency` and `outbound` are the locator's first and last step.

    `peering` is the policy, `domains` our SIP domains, `find_home` finds our users and numbers, `owner` says whose a
    number is, `announce` makes this edge known in the overlay, `now` is monotonic and `wall` unix seconds.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        peering: Peering,
        *,
        domains: Sequence[str],
        listen: Sequence[Address],
        limits: Limits,
        ask: Ask,
        addresses: Callable[[str], Awaitable[list[str]]],
        secrets: SharedSecret,
        node_id: bytes,
        random: Any,
        wall: Callable[[], float],
        find_home: Find,
        owner: Owner,
        announce: Callable[[], None],
    ) -> None:
        self.setName("peering")  # type: ignore[no-untyped-call]
        self.counters: Counter[str] = Counter()
        self._peering = peering
        self._announce = announce
        self._reactor = reactor
        self._wall = wall
        self._daily: Any = None
        self._replays = ReplayCache()
        self._owner = owner
        ours = frozenset(domains)
        self._tls = PeerTls(
            peering.policy,
            peering.own,
            wall,
            refused=lambda refusal, host: self.edge.note_handshake(refusal, host, wall()),
        )
        self._connections = PeerConnections(
            reactor, self._tls, limits, lambda *refused: self.edge.note_dialled(*refused, wall=wall())
        )
        self._fetcher = CertificateFetcher(
            reactor, addresses, roots=peering.policy.roots, private_networks=peering.file.identity.networks
        )
        self._server = CertificateServer(reactor, peering.file.identity.url or "", peering.own, self._tls)
        self.outbound = Outbound(
            self.peering,
            ours,
            ask,
            self._connections,
            random,
            now=reactor.seconds,
            wall=wall,
            find_home=find_home,
            owner=owner,
            counters=self.counters,
        )
        self.edge = PeeringEdge(
            self.peering,
            self._connections,
            self.outbound,
            IdentityVerifier(self._fetcher.fetch, self._replays),
            Crossings(secrets, node_id),
            ours,
            listen,
            self.counters,
        )

    def peering(self) -> Peering:
        """The policy in force."""
        return self._peering

    @property
    def emergency(self) -> Find:
        """The step before all others."""
        return self.outbound.emergency

    @property
    def is_emergency(self) -> Callable[[Uri], bool]:
        """Which targets that step takes."""
        return self.outbound.is_emergency

    def startService(self) -> None:
        """Serve our certificates, and be found by the other nodes. The SIP service has started the edge."""
        super().startService()  # type: ignore[no-untyped-call]
        self._server.listen(self._peering.file.identity.listen)
        for warning in self._peering.warnings:
            self.log.warn("{warning}", warning=warning)
        self._daily = self._reactor.callLater(_DAY, self._look_at_certificates)
        self._announce()

    def _look_at_certificates(self) -> None:
        """Once a day: the log says which of ours run out."""
        self._daily = self._reactor.callLater(_DAY, self._look_at_certificates)
        for warning in warnings_of(self._peering.own.certificates, self._wall()):
            self.log.warn("{warning}", warning=warning)

    def stopService(self) -> Any:
        """Stop serving."""
        super().stopService()  # type: ignore[no-untyped-call]
        if self._daily is not None:
            self._daily.cancel()
            self._daily = None
        return self._server.stop()

    def reload(self, peering: Peering) -> None:
        """Use a new policy from the next request on, on open connections, too."""
        self._peering = peering
        self._tls.update(peering.policy, peering.own)
        self._server.update(peering.own)
        self._fetcher.update(peering.policy.roots, peering.file.identity.networks)
        for warning in peering.warnings:
            self.log.warn("{warning}", warning=warning)

    # ---- what the operator asks ----------------------------------------------------------------------------

    async def explain(self, target: str, sender: str) -> list[dict[str, Any]]:
        """The steps that a call would take."""
        return await explain(self.outbound, target, sender, self._owner)

    def refusals(self) -> dict[str, Any]:
        """What was refused: counts by reason, and the last ones."""
        counts = {name: count for name, count in sorted(self.counters.items()) if name != "admitted"}
        return {"admitted": self.counters["admitted"], "counts": counts, "last": list(self.edge.refusals)}

    def statistics(self) -> dict[str, int]:
        """Counters: decisions, connections, certificates fetched; and what is open and kept."""
        return {
            **self.counters,
            **{f"connections_{name}": count for name, count in self._connections.counters.items()},
            **{f"certificates_{name}": count for name, count in self._fetcher.counters.items()},
            "connections_open": len(self._connections),
            "replays_remembered": len(self._replays),
            "replays_evicted": self._replays.evicted,
        }
