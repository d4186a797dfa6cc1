"""Where is bob? An ordered list of steps with one signature, each asked in its turn (design D7).

A step answers None ("not mine"), targets (the search is over; none means "known here, but nowhere to be
found", which ends it, too, but for a number that was dialled: another step may know where that leads), or raises
NotLocated with the status that ends the request. Hybrid domains, direct peering and
gateways are further steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import quote

from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.locating import (
    Binding,
    Destinations,
    LocateStep,
    LocationStore,
    LocationUnavailable,
    NotLocated,
    Origin,
    Query,
    Target,
    aor_of,
    behind_nat,
    decode_gr,
    encode_gr,
    instance_key,
    is_dialled,
    parse_flow_text,
    resource_of,
)
from p2psipd.proto.sip.registrar import BindingTable, OwnBinding
from p2psipd.proto.sip.uri import SipUri, parse_uri

_MAX_FOLLOWED = 5
"""So many other users are looked up for one, whose Contacts name them."""


class Locator:
    """Asks the steps in order; whoever knows the user ends the search."""

    def __init__(self, steps: Sequence[LocateStep]) -> None:
        self._steps = tuple(steps)

    async def locate(self, query: Query) -> Sequence[Target]:
        """Where `query.uri` may be reached; raises NotLocated (404 when no step knows it) or
        LocationUnavailable.
        """
        nowhere = False
        for step in self._steps:
            found = await step(query)
            if found or (found is not None and not is_dialled(query.uri)):
                return found
            nowhere = nowhere or found is not None
        if nowhere:
            return ()
        raise NotLocated(404)


class OwnBindings:
    """The step for the phones that this node owns.

    It ends the search for requests that came from another node: those are resolved here and never looked up
    again (404 unknown, 430 when the flow to the phone is gone), and for GRUUs that name this node or another
    one. Of the phones of its last life a node knows what `location` holds in its name: over UDP they are still where
    they were.
    """

    def __init__(
        self, table: BindingTable, node_id: bytes, domains: Sequence[str], location: LocationStore | None = None
    ) -> None:
        self._table = table
        self._node_id = node_id
        self._domains = frozenset(domains)
        self._location = location

    async def __call__(self, query: Query) -> Sequence[Target] | None:
        """The step."""
        uri = query.uri
        if not isinstance(uri, SipUri) or uri.host not in self._domains:
            return None
        gruu = _gruu_of(uri)
        if gruu is not None and gruu.node_id and gruu.node_id != self._node_id:
            if query.origin is Origin.NODE:
                raise NotLocated(404)
            return (Target(str(uri), node_id=gruu.node_id),)
        if query.origin is not Origin.NODE and (gruu is None or gruu.resource):
            return None
        owned = [own for own in self._table.of(aor_of(uri.bare()), query.wall) if _is_meant(own.binding, gruu)]
        if not owned:
            targets = await self._of_last_life(uri, gruu, query.wall)
            if targets:
                return targets
            if gruu is None and is_dialled(uri):
                # Another node sends it on to us, who may be the edge for numbers.
                return None
            raise NotLocated(404)
        targets = [target for own in owned if (target := own_target(own)) is not None]
        if not targets:
            raise NotLocated(430)
        return targets

    async def _of_last_life(self, uri: SipUri, gruu: Destinations | None, wall: float) -> Sequence[Target]:
        """The phones that registered here over UDP before this node was started again, and have not since."""
        stored: Sequence[Binding] = ()
        if self._location is not None:
            with suppress(LocationUnavailable):
                stored = await self._location.bindings(aor_of(uri.bare()))
        return [
            _contact_target(binding, None)
            for binding in stored
            if binding.node_id == self._node_id
            and binding.expires_at > wall
            and binding.received.startswith("UDP ")
            and _is_meant(binding, gruu)
        ]


def _is_meant(binding: Binding, gruu: Destinations | None) -> bool:
    """Whether a request for this GRUU, or for the user, is for this binding."""
    if gruu is not None and gruu.resource:
        return _is_instance(binding, gruu)
    return gruu is None or not gruu.opaque or binding.key == gruu.opaque


def _gruu_of(uri: SipUri) -> Destinations | None:
    """The destination list in a URI of a served domain; None for an address of record. Raises NotLocated for what is no
    GRUU of ours (RFC 5627 section 6.1).
    """
    gr = uri.gr
    if gr is None:
        return None
    gruu = decode_gr(gr) if gr else None
    if gruu is None or (gruu.resource and gruu.resource != resource_of(aor_of(uri.bare()))):
        raise NotLocated(404)
    return gruu


def _latest_first(binding: Binding) -> float:
    """Of several flows of one instance the one that was registered last is tried first (RFC 5626 section 7)."""
    return -binding.stored_at


def _is_instance(binding: Binding, gruu: Destinations) -> bool:
    return bool(binding.instance_id) and instance_key(binding.instance_id) == gruu.opaque


class OverlayBindings:
    """The step for users of the served domains: every binding of the user, wherever it is owned; for a public GRUU
    those of its instance (RFC 5627 section 6.1).

    Own bindings come from memory, unless the overlay says that their phones have moved on; they also stand in
    when the overlay can't be asked. Before it says that nobody is there it asks afresh. Bindings of other nodes
    become requests to that node with a GRUU that names the instance. Where a Contact is the address of another user,
    what is for the one goes to where the other is (RFC 3261 section 16.5), and to nobody twice.
    """

    def __init__(self, location: LocationStore, table: BindingTable, node_id: bytes, domains: Sequence[str]) -> None:
        self._location = location
        self._table = table
        self._node_id = node_id
        self._domains = frozenset(domains)

    async def __call__(self, query: Query) -> Sequence[Target] | None:
        """The step."""
        uri = query.uri
        if query.origin is Origin.NODE or not isinstance(uri, SipUri) or uri.host not in self._domains or not uri.user:
            return None
        targets = await self._bound(query, uri)
        if any(map(self._another_user, targets)):
            return await self._followed(query, uri, targets)
        return targets

    def _another_user(self, target: Target) -> SipUri | None:
        """The other user of a served domain whose address the Contact of a binding is; echo's is its own address."""
        binding = target.binding
        if binding is None or binding.native or binding.path:
            return None
        if binding.contact.rpartition("@")[2].partition(";")[0].lower() not in self._domains:
            return None
        uri = parse_uri(binding.contact)
        if not isinstance(uri, SipUri) or not uri.user or "gr" in uri.params or aor_of(uri.bare()) == binding.aor:
            return None
        return uri.bare()

    async def _followed(self, query: Query, asked: SipUri, targets: Sequence[Target]) -> Sequence[Target]:
        seen, found, waiting = {aor_of(asked.bare())}, [], list(targets)
        for target in waiting:
            uri = self._another_user(target)
            if uri is None:
                found.append(target)
            elif aor_of(uri) not in seen and len(seen) <= _MAX_FOLLOWED:
                seen.add(aor_of(uri))
                further: Sequence[Target] = ()
                with suppress(LocationUnavailable):
                    further = await self._bound(query, uri)
                waiting += [each._replace(q=target.q) for each in further]
                if not further and (target.flow is not None or target.node_id is not None):
                    # Of nobody whom we know: some phones write our domain into their Contact.
                    found.append(target)
        return found

    async def _bound(self, query: Query, uri: SipUri) -> Sequence[Target]:
        """The bindings of one user."""
        gruu = _gruu_of(uri)
        targets = self._targets(uri, gruu, await self._stored(query, uri, query.fresh), query.wall)
        if not targets and not query.fresh:
            # What was stored a moment ago is not yet at all who answer for it; the responsible peer has it.
            with suppress(LocationUnavailable):
                targets = self._targets(uri, gruu, await self._stored(query, uri, True), query.wall)
        return targets

    async def _stored(self, query: Query, uri: SipUri, fresh: bool) -> Sequence[Binding]:
        aor = aor_of(uri)
        try:
            return await self._location.bindings(aor, fresh)
        except LocationUnavailable:
            if not any(own_target(own) for own in self._table.of(aor, query.wall)):
                raise
            return ()

    def _targets(self, uri: SipUri, gruu: Destinations | None, stored: Sequence[Binding], wall: float) -> list[Target]:
        self._table.moved_on(stored, self._node_id)
        owned = self._table.of(aor_of(uri), wall)
        if gruu is not None:
            owned = [own for own in owned if _is_instance(own.binding, gruu)]
            stored = [binding for binding in stored if _is_instance(binding, gruu)]
        targets = [target for own in owned if (target := own_target(own)) is not None]
        here = {own.binding.key for own in owned}
        for binding in sorted(stored, key=_latest_first) if len(stored) > 1 else stored:
            if binding.expires_at > wall and binding.key not in here:
                targets.append(self._target(uri, binding, wall))
        if len(targets) > 1:
            targets.sort(key=lambda target: -target.q)
        return targets

    def _target(self, uri: SipUri, binding: Binding, wall: float) -> Target:
        if binding.native:
            return Target(binding.contact, node_id=binding.node_id, q=binding.q, binding=binding)
        if binding.node_id == self._node_id:
            for own in self._table.of(binding.aor, wall):
                target = own_target(own) if own.binding.key == binding.key else None
                if target is not None:
                    return target
            # Registered with this node before it was started again: over UDP the phone is still where it was.
            return _contact_target(binding, None)
        if binding.aor != aor_of(uri.bare()):
            # The user's name stood for another one, and that is the one the other node knows.
            uri = _uri_of(binding.aor) or uri
        gruu = uri.bare().with_param("gr", encode_gr(binding.node_id, binding.key))
        return Target(str(gruu), node_id=binding.node_id, q=binding.q, instance=binding.instance_id, binding=binding)


def _uri_of(aor: str) -> SipUri | None:
    """An address of record as a URI, its user part escaped again."""
    user, at, host = aor.removeprefix("sip:").rpartition("@")
    try:
        return SipUri(host, user=quote(user, safe="-_.!~*'()&=+$,;?/")) if at else None
    except SipError:
        return None


def own_target(own: OwnBinding) -> Target | None:
    """How this node reaches a phone that it owns; None when the flow is gone that was the only way."""
    binding, flow, _ = own
    if flow is not None and flow.reliable and not binding.path:
        if getattr(flow, "alive", True):
            return _contact_target(binding, flow)
        flow = None
    if flow is None and binding.reg_id:
        return None
    return _contact_target(binding, flow)


def _contact_target(binding: Binding, flow: Flow | None) -> Target:
    onward, address = None, None
    if binding.path:
        # The first of its hops knows the way.
        pass
    elif flow is None:
        where = parse_flow_text(binding.received)
        if where is not None and where[0] == "UDP" and behind_nat(binding, where[2][0]):
            address = ("UDP", *where[2])
    elif flow.reliable or behind_nat(binding, flow.remote[0]):
        onward = flow
    else:
        # The same host: the Contact says at which port, and the listener is the one that the phone knows.
        uri = parse_uri(binding.contact)
        if isinstance(uri, SipUri) and uri.host == flow.remote[0] and uri.transport in (None, "udp"):
            onward = flow.towards((uri.host, uri.port or 5060))
    return Target(binding.contact, onward, None, address, binding.path, binding.q, binding.instance_id, binding)
