"""What a running node tells its operator: status, neighbours, records, and looks into the overlay.

Each function gives plain values that become JSON; ``app.py`` puts them into the table of the control
service.  Names of fields are an interface: ``p2psip`` and its users read them.  Times are seconds, round
trips milliseconds, identifiers hexadecimal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from p2psipd.net.refusals import endpoint_text
from p2psipd.proto.reload.errors import InvalidMessage, NotFound, ReloadError
from p2psipd.proto.reload.ids import NodeId, ResourceId, distance, resource_id
from p2psipd.proto.reload.kinds import (
    DIGEST_CREDENTIAL,
    DIGEST_KEY,
    PROXY_REGISTRATION,
    SIP_REGISTRATION,
    STANDARD_KINDS,
)
from p2psipd.proto.reload.sip_usage import (
    DigestCredential,
    DigestKey,
    ProxyAlias,
    SipRegistrationUri,
    decode_proxy_registration,
    decode_sip_registration,
)
from p2psipd.proto.reload.wire import Destination, NodeDestination
from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.uri import SipUri, parse_uri

if TYPE_CHECKING:
    from p2psipd.proto.reload.peer import Peer
    from p2psipd.services.overlay import OverlayService

#: Rows of one answer; a node may hold many more records.
MOST_ROWS: Final = 1000
#: A node that has not joined after this time has a problem worth a line.
# So long a node may take to join before it says so: with a reason, and without.
_JOIN_SOON_SECONDS: Final = 5.0
_JOIN_SECONDS: Final = 30.0
_DAY: Final = 86400.0


class BadArgument(ValueError):
    """What the operator asked about is not what was expected; the message says what was."""


class SipStatus(Protocol):
    """What the SIP service tells."""

    def registrations(self) -> Sequence[Mapping[str, Any]]:
        """The phones that registered here."""
        ...

    def calls(self) -> Sequence[Mapping[str, Any]]:
        """The calls that this node carries."""
        ...

    def ladder(self, call_id: str) -> Sequence[Mapping[str, Any]]:
        """The messages of one call."""
        ...

    def problems(self) -> Sequence[str]:
        """What an operator should see to, a line each."""
        ...


class Inspection:
    """Looks into one node and its peer core.  ``sip`` is None for a node without phones."""

    def __init__(
        self,
        overlay: OverlayService,
        core: Peer,
        roles: Sequence[str],
        version: str,
        sip: SipStatus | None = None,
        wall: Callable[[], float] = time.time,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._overlay = overlay
        self._core = core
        self._roles = list(roles)
        self._version = version
        self._sip = sip
        self._wall = wall
        self._now = now

    # -- this node ---------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Who this node is, how it is, and what is wrong, with the remedy."""
        overlay = self._overlay
        certificate = overlay.credential.certificate
        topology = dict(self._core.topology.status())
        address = overlay.address
        return {
            "node_id": overlay.node_id.hex(),
            "user": certificate.user,
            "overlay": overlay.configuration.overlay_name,
            "address": "" if address is None else endpoint_text(address),
            "joined": overlay.is_joined,
            "up_seconds": round(self._now() - overlay.started_at, 1),
            "roles": self._roles,
            "version": self._version,
            # Of the overlay's members one is this node.
            "peers": max(0, _members(topology) - int(overlay.is_joined)),
            "links": len(overlay.links),
            "records": self.record_count(),
            "registrations": len(self._sip.registrations()) if self._sip is not None else None,
            "calls": self.open_calls() if self._sip is not None else None,
            "configuration": overlay.configuration.sequence,
            "certificate_seconds": round(certificate.not_after - self._wall()),
            "topology": topology,
            "misbehaviour": dict(overlay.misbehaviour),
            "problems": self.problems(),
        }

    def problems(self) -> list[str]:
        """One line for each thing that an operator should see to."""
        overlay, found = self._overlay, []
        left = overlay.credential.certificate.not_after - self._wall()
        if left <= 0:
            found.append("the certificate has expired: renew it with `p2psip ca issue` and reload")
        elif left < 7 * _DAY:
            found.append(f"the certificate expires in {left / _DAY:.1f} days: renew it and reload")
        if overlay.configuration.expiration < self._wall():
            found.append("the overlay's configuration document has expired: its signer must issue a new one")
        waited = self._now() - overlay.started_at
        if not overlay.is_joined and (waited > _JOIN_SECONDS or (overlay.last_failure and waited > _JOIN_SOON_SECONDS)):
            why = overlay.last_failure or "no answer"
            found.append(f"not joined: no bootstrap peer admits this node; the last reason: {why}")
        elif overlay.is_joined and not len(overlay.links) and not self._founded_alone():
            why = f"; the last reason: {overlay.last_failure}" if overlay.last_failure else ""
            found.append(f"no links: this node is cut off from the overlay{why}")
        if overlay.twin:
            found.append(f"{overlay.twin}: stop one of the two, and give it an identity of its own")
        if overlay.is_document_unwritten:
            found.append(f"the newest configuration document can't be written to {overlay.document}: make room there")
        if overlay.store_file is not None and overlay.store_file.failing:
            found.append(f"records can't be written to {overlay.store_file.path}: make room on the disk")
        if self._sip is not None:
            found += self._sip.problems()
        return found

    def _founded_alone(self) -> bool:
        """Whether no other member is known and none need be: this node founds the overlay."""
        return self._core.parameters.first and _members(self._core.topology.status()) <= 1

    def peers(self) -> list[dict[str, Any]]:
        """The open links: to whom, how quick, how much went over them."""
        overlay, now = self._overlay, self._now()
        rows = []
        for info, certificate in overlay.neighbours():
            node = NodeId(certificate.node_id)
            rtt = self._core.rtt(node)
            rows.append(
                {
                    "node": node.hex(),
                    "address": endpoint_text(info.address),
                    "direction": "out" if info.outgoing else "in",
                    "tls": info.tls,
                    "bucket": distance(node, overlay.node_id).bit_length() - 1,
                    "rtt_ms": None if rtt is None else round(rtt * 1000, 2),
                    "open_seconds": round(now - info.opened_at, 1),
                    "received": info.received,
                    "sent": info.sent,
                }
            )
        return sorted(rows, key=lambda row: str(row["node"]))

    def members(self) -> list[dict[str, Any]]:
        """Every member of the overlay that this node knows."""
        return [dict(row) for row in self._core.topology.members()][:MOST_ROWS]

    def record_count(self) -> int:
        """Values that this node holds."""
        return len(self._core.storage)

    def records(self) -> list[dict[str, Any]]:
        """The stored values, at most :data:`MOST_ROWS`."""
        rows: list[dict[str, Any]] = []
        for held in self._core.storage.entries(self._wall()):
            rows.append(
                {
                    "resource": held.resource.hex(),
                    "kind": self._kind_name(held.kind),
                    "key": held.key.hex(),
                    "holds": "primary" if self._core.topology.responsible(held.resource) else "copy",
                    "octets": held.size if held.exists else None,
                    "signer": held.user,
                    "generation": held.generation,
                    "stored_at": held.storage_time / 1000,
                    "seconds_left": held.lifetime,
                }
            )
            if len(rows) >= MOST_ROWS:
                break
        return rows

    def registrations(self) -> list[dict[str, Any]]:
        """The phones that registered here."""
        return [dict(row) for row in self._sip.registrations()] if self._sip is not None else []

    def calls(self) -> list[dict[str, Any]]:
        """The calls that this node carries."""
        return [dict(row) for row in self._sip.calls()] if self._sip is not None else []

    def open_calls(self) -> int:
        """Calls that have not ended."""
        return sum(1 for call in self.calls() if call.get("ended_at") is None)

    def ladder(self, beginning: str) -> dict[str, Any]:
        """One call, named by its Call-ID or the beginning of it: its record, if it became a call, and its messages.

        NotFound if this node carries none; BadArgument if several begin so.
        """
        records = {str(row["call_id"]): row for row in self.calls() if str(row["call_id"]).startswith(beginning)}
        call_id = beginning if beginning in records or len(records) != 1 else next(iter(records))
        steps = [dict(row) for row in self._sip.ladder(call_id)] if self._sip is not None else []
        if not steps and call_id not in records:
            if records:
                raise BadArgument(f"{len(records)} calls begin with {beginning}; expected more of the Call-ID")
            raise NotFound(f"no call {beginning} here")
        return {"call": records.get(call_id), "messages": steps}

    # -- the overlay -------------------------------------------------------------------------------

    async def ping(self, prefix: str) -> dict[str, Any]:
        """Ask a node, named by its Node-ID or the beginning of it, whether it is there."""
        node = self.node_named(prefix)
        pong = await self._overlay.ping(node)
        offset = pong.time / 1000 - self._wall()
        return {
            "node": pong.node.hex(),
            "hops": pong.hops,
            "ms": round(pong.seconds * 1000, 2),
            "clock_offset_seconds": round(offset, 3),
        }

    async def probe(self, prefix: str) -> dict[str, Any]:
        """A node's share of the space, number of resources and uptime."""
        node = self.node_named(prefix)
        answered = await self._overlay.probe(node)
        names = {1: "responsible_parts_per_billion", 2: "resources", 3: "uptime_seconds"}
        information = getattr(answered.body, "information", ())
        return {
            "node": answered.node.hex(),
            "hops": answered.hops,
            "ms": round(answered.seconds * 1000, 2),
            **{names[kind]: value for kind, value in information if kind in names},
        }

    async def get(self, name: str, kind: str | None = None) -> dict[str, Any]:
        """Fetch and verify what the overlay holds under a name, and say who answered."""
        resource = self._resource(name)
        kinds = (SIP_REGISTRATION, PROXY_REGISTRATION) if kind is None else (self._kind_number(kind),)
        answer: dict[str, Any] = {"name": name, "resource": resource.hex()}
        try:
            outcome = await self._overlay.fetch(resource, kinds)
        except NotFound:
            return {**answer, "found": False, "values": []}
        values = [
            {
                "kind": self._kind_name(value.kind),
                "key": value.key.hex(),
                "value": _describe(value.kind, value.value),
                "signer": value.signer.user,
                "seconds_left": value.lifetime,
                "stored_at": value.storage_time / 1000,
            }
            for value in outcome.values
            if value.exists
        ]
        return {
            **answer,
            "found": bool(values),
            "verified": True,
            "answered_by": outcome.node.hex(),
            "hops": outcome.hops,
            "ms": round(outcome.seconds * 1000, 2),
            "values": values,
        }

    async def trace(self, name: str) -> dict[str, Any]:
        """The way to whoever is responsible for a name, hop by hop."""
        resource = self._resource(name)
        began = self._now()
        hops = await self._overlay.trace(resource)
        return {
            "name": name,
            "resource": resource.hex(),
            "answered_by": hops[-1].node.hex() if hops else None,
            "hop_count": sum(1 for hop in hops if hop.node != self._overlay.node_id),
            "ms": round((self._now() - began) * 1000, 2),
            "hops": [
                {
                    "node": hop.node.hex(),
                    "distance_bits": hop.distance_bits,
                    "ms": round(hop.seconds * 1000, 2),
                    "responsible": hop.responsible,
                }
                for hop in hops
            ],
        }

    def node_named(self, prefix: str) -> NodeId:
        """The Node-ID that ``prefix`` is the beginning of, among those known; BadArgument if it is not one."""
        digits = prefix.strip().lower()
        if not digits or len(digits) > 32 or any(digit not in "0123456789abcdef" for digit in digits):
            raise BadArgument("expected a Node-ID: up to 32 hexadecimal digits")
        if len(digits) == 32:
            return NodeId(bytes.fromhex(digits))
        known = {str(row["node"]) for row in self._core.topology.members()}
        known |= {certificate.node_id.hex() for _, certificate in self._overlay.neighbours()}
        known.add(self._overlay.node_id.hex())
        found = sorted(node for node in known if node.startswith(digits))
        if len(found) != 1:
            what = f"{len(found)} nodes begin" if found else "no node that this one knows begins"
            raise BadArgument(f"{what} with {digits}; expected all 32 digits of a Node-ID")
        return NodeId(bytes.fromhex(found[0]))

    def _resource(self, name: str) -> ResourceId:
        if not name:
            raise BadArgument("expected a name such as sip:bob@overlay.example")
        if name.partition(":")[0].lower() not in ("sip", "sips"):
            return resource_id(name)
        try:
            uri = parse_uri(name)
        except SipError as error:
            raise BadArgument(f"expected a SIP URI such as sip:bob@overlay.example: {error}") from None
        assert isinstance(uri, SipUri)
        return resource_id(uri.aor)

    def _kind_name(self, kind: int) -> str:
        kinds = self._overlay.configuration.kinds
        known = kinds.get(kind) or STANDARD_KINDS.get(kind)
        return known.name if known is not None else f"{kind:#x}"

    def _kind_number(self, text: str) -> int:
        for kind in self._overlay.configuration.kinds.values():
            if kind.name.upper() == text.upper():
                return kind.id
        try:
            return int(text, 0)
        except ValueError:
            names = ", ".join(kind.name for kind in self._overlay.configuration.kinds.values())
            raise BadArgument(f"expected a kind: {names}, or a number") from None


def _members(topology: Mapping[str, object]) -> int:
    count = topology.get("members", 0)
    return count if isinstance(count, int) else 0


def _describe(kind: int, value: bytes) -> str:
    """A stored value in a few words; never what it protects."""
    try:
        match kind:
            case _ if kind == PROXY_REGISTRATION:
                registration = decode_proxy_registration(value)
                if isinstance(registration, ProxyAlias):
                    return f"stands for {registration.target}"
                return f"{registration.contact} at {_nodes(registration.destination_list)}"
            case _ if kind == SIP_REGISTRATION:
                native = decode_sip_registration(value)
                if isinstance(native, SipRegistrationUri):
                    return f"look at {native.uri}"
                return f"node {_nodes(native.destination_list)}"
            case _ if kind == DIGEST_CREDENTIAL:
                return f"password, encrypted in epoch {DigestCredential.decode(value).epoch}"
            case _ if kind == DIGEST_KEY:
                return f"password key of epoch {DigestKey.decode(value).epoch}, wrapped"
    except (InvalidMessage, ReloadError) as error:
        return f"{len(value)} octets, malformed: {error}"
    return f"{len(value)} octets"


def _nodes(destinations: Iterable[Destination]) -> str:
    return ",".join(d.node.hex() for d in destinations if isinstance(d, NodeDestination)) or "no node"
