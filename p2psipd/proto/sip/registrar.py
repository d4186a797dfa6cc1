"""The registrar's rules: what a REGISTER does to a user's bindings (RFC 3261 section 10.3, RFC 3327, RFC 3608,
RFC 5626, RFC 5627).

:func:`plan` decides, without touching anything, which bindings a REGISTER adds, replaces and removes;
:class:`Registrar` writes them where bindings are kept and only then answers with :func:`answer`. A REGISTER
that must fail raises :class:`RegistrationRefused`. :class:`BindingTable` is the node's memory of the bindings
whose phones it owns.

An unchanged refresh costs no write: what is stored lives half a lifetime longer than the phone was promised, and
is written again when that half is used up. So who reads never sees a binding end before its phone does, and a
phone that vanished is found for half a lifetime too long, at a node that knows better and says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from email.utils import formatdate
from enum import Enum
from functools import lru_cache
from heapq import heapify, heappop, heappush
from typing import Final, NamedTuple

from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.headers import NameAddr, Parameters, unquote
from p2psipd.proto.sip.locating import Binding, LocationStore, LocationUnavailable, binding_key, flow_text, public_gruu
from p2psipd.proto.sip.message import Request, Response, make_response
from p2psipd.proto.sip.parameters import NO_PARAMETERS
from p2psipd.proto.sip.uri import SipUri, parse_uri

SUPPORTED: Final = ("path", "outbound", "gruu")
"""Option tags that a REGISTER may require of this registrar."""

_OWN_PARAMETERS: Final = ("expires", "q", "pub-gruu", "temp-gruu")
_ONE_HOUR: Final = 3600
_MAX_CONTACT: Final = 1024
_MAX_PATHS: Final = 10
#: Octets of Contact, Path and Call-ID together; the record may have 8192 (overlay profile, section 4).
_MAX_BINDING: Final = 6000


#: So long (seconds) is what the overlay held besides our own bindings taken as true in answers to mere refreshes.
_VIEW_SECONDS: Final = 30.0
_VIEWS: Final = 20_000
#: A phone that speaks to nobody else counts one up for a refresh, two where its nonce had become stale.
_IN_SEQUENCE: Final = 2
#: Of the lifetime that a phone is promised, how much longer the stored binding lives.
_STORED_LONGER: Final = 0.5


class Bounds(NamedTuple):
    """The registrar's limits: lifetimes in seconds, and how many contacts a user may have.

    `flow_timer` (seconds, 0: not said) asks phones with outbound flows for keep-alives (RFC 5626 section 6);
    `service_route` are Route values for the phones' own requests (RFC 3608).
    """

    min_expires: int = 60
    max_expires: int = 3600
    default_expires: int = 3600
    max_contacts: int = 10
    flow_timer: int = 0
    service_route: tuple[str, ...] = ()


class RegistrationRefused(SipError):
    """The REGISTER fails: `status`, `reason` and `headers` answer it; no binding changes. `why` is for
    counters.
    """

    def __init__(
        self,
        status: int,
        reason: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
        why: str = "registration_refused",
    ) -> None:
        super().__init__(reason or "", status=status)
        self.headers = tuple(headers)
        self.why = why


class Plan(NamedTuple):
    """What a REGISTER does: bindings to store, bindings to remove, and all that are current afterwards."""

    puts: tuple[Binding, ...]
    removes: tuple[Binding, ...]
    current: tuple[Binding, ...]
    outbound: bool = False


def plan(
    request: Request, aor: str, existing: Sequence[Binding], flow: Flow, node_id: bytes, bounds: Bounds, wall: float
) -> Plan:
    """What `request`, already authenticated and authorised for `aor`, does to the `existing` bindings.

    `flow` is how it came, `node_id` the node that will own new bindings, `wall` unix seconds. Raises
    RegistrationRefused. RFC 3261 section 10.3 steps 2, 6 and 7.
    """
    required = request.require
    if required and (unsupported := [tag for tag in required if tag not in SUPPORTED]):
        raise RegistrationRefused(420, None, [("Unsupported", ", ".join(unsupported))])
    current = {binding.key: binding for binding in existing if binding.expires_at > wall}
    if request.contact_star:
        return _remove_all(request, current)
    if not request.contacts:
        return Plan((), (), tuple(current.values()))
    wanted = _wishes(request, aor, flow, node_id, bounds, wall)
    return _apply(request, wanted, current, bounds, wall)


def _apply(
    request: Request, wanted: Sequence[Binding], current: dict[bytes, Binding], bounds: Bounds, wall: float
) -> Plan:
    """Each Contact in its turn (step 7); all or nothing."""
    puts: dict[bytes, Binding] = {}
    removes: dict[bytes, Binding] = {}
    for binding in wanted:
        old = _same(binding, current)
        if old is not None:
            if old.call_id == binding.call_id and binding.cseq <= old.cseq and old.key not in puts:
                raise RegistrationRefused(500, "Out of Order")
            if old.key != binding.key:
                # The same place, written differently: its entry goes, the new one has a key of its own.
                removes[old.key] = current.pop(old.key)
                puts.pop(old.key, None)
        if binding.expires_at > wall:
            puts[binding.key] = current[binding.key] = binding
            removes.pop(binding.key, None)
        elif old is not None and old.key in current:
            removes[old.key] = current.pop(old.key)
            puts.pop(old.key, None)
    if puts and len(current) > bounds.max_contacts:
        raise RegistrationRefused(403, "Too Many Contacts")
    outbound = "outbound" in request.supported and any(put.reg_id for put in puts.values())
    return Plan(tuple(puts.values()), tuple(removes.values()), tuple(current.values()), outbound)


def _remove_all(request: Request, current: dict[bytes, Binding]) -> Plan:
    """`Contact: *`: alone and with Expires: 0, it removes every binding (step 6), except those that a user agent of the
    overlay has signed itself.
    """
    if len(request.get_all("contact")) != 1 or request.expires != 0:
        raise RegistrationRefused(400, "Invalid Request")
    number = request.cseq.number
    for binding in current.values():
        if binding.call_id == request.call_id and number <= binding.cseq:
            raise RegistrationRefused(500, "Out of Order")
    native = tuple(binding for binding in current.values() if binding.native)
    return Plan((), tuple(binding for binding in current.values() if not binding.native), native)


def _wishes(request: Request, aor: str, flow: Flow, node_id: bytes, bounds: Bounds, wall: float) -> list[Binding]:
    """The bindings that the Contact values ask for, judged together (RFC 5626 section 6)."""
    contacts = request.contacts
    flows = [each for each in contacts if each.params.get("reg-id") and each.params.get("+sip.instance")]
    outbound = not flows or _first_hop_keeps_flows(request)
    if not outbound and "outbound" in request.supported:
        raise RegistrationRefused(439, "First Hop Lacks Outbound Support")
    wanted = [_wanted(request, aor, contact, flow, node_id, bounds, wall, outbound) for contact in contacts]
    if flows and len(wanted) > 1:
        living = [binding for binding in wanted if binding.expires_at > wall]
        if len(living) > 1 and any(binding.reg_id for binding in wanted):
            raise RegistrationRefused(400, "One Flow, One Contact")
    return wanted


def _first_hop_keeps_flows(request: Request) -> bool:
    """Whether the phone's first hop supports outbound: it is this node, or the first Path URI says "ob" (RFC 5626
    section 6, read as it is written: the first value of the header field).
    """
    if len(request.get_all("via")) < 2:
        return True
    paths = request.get_all("path")
    if not paths:
        return False
    uri = NameAddr.parse(paths[0]).uri
    return isinstance(uri, SipUri) and uri.ob


def _wanted(
    request: Request,
    aor: str,
    contact: NameAddr,
    flow: Flow,
    node_id: bytes,
    bounds: Bounds,
    wall: float,
    outbound: bool,
) -> Binding:
    """The binding that one Contact value asks for; with `expires_at` not after `wall` it asks for removal."""
    text = contact.uri_text
    uri = contact.uri
    if len(text) > _MAX_CONTACT or (isinstance(uri, SipUri) and not uri.host):
        raise RegistrationRefused(400, "Bad Contact")
    if isinstance(uri, SipUri):
        # Also as a GRUU: it would be looked up again and again (RFC 5627 section 5.1). With headers it is another URI
        # (RFC 4475 section 3.3.14).
        if uri.port is None and uri.user and not uri.headers and f"sip:{uri.aor}" == aor:
            raise RegistrationRefused(403, "Contact Is the Address of Record")
    elif contact.params.get("+sip.instance"):
        raise RegistrationRefused(403, "Contact Is No SIP URI")
    lifetime = contact.expires
    if lifetime is None:
        lifetime = request.expires
    if lifetime is None:
        lifetime = bounds.default_expires
    if 0 < lifetime < bounds.min_expires and lifetime < _ONE_HOUR:
        raise RegistrationRefused(423, None, [("Min-Expires", str(bounds.min_expires))])
    instance, reg_id = _instance(contact.params)
    reg_id = reg_id if outbound else 0
    paths = request.get_all("path")
    if len(paths) > _MAX_PATHS:
        raise RegistrationRefused(400, "Too Many Path Values")
    _check_size(str(contact), request.call_id, *paths)
    quality = contact.q
    return Binding(
        aor=aor,
        key=binding_key(text, instance, reg_id),
        contact=text,
        node_id=node_id,
        path=tuple(paths),
        q=1.0 if quality is None else quality,
        instance_id=instance,
        reg_id=reg_id,
        call_id=request.call_id,
        cseq=request.cseq.number,
        expires_at=wall + min(lifetime, bounds.max_expires),
        received=flow_text(flow),
        parameters=tuple([pair for pair in contact.params if pair[0].lower() not in _OWN_PARAMETERS]),
        user_agent=(request.get("user-agent") or "")[:128],
        stored_at=wall,
    )


def _check_size(*texts: str) -> None:
    """What a binding is made of must fit into its record, as UTF-8."""
    try:
        size = len("".join(texts).encode())
    except UnicodeEncodeError:
        raise RegistrationRefused(400, "Not UTF-8") from None
    if size > _MAX_BINDING:
        raise RegistrationRefused(400, "Binding Too Large")


def _instance(params: Parameters) -> tuple[str, int]:
    """(instance-id without its quotes and brackets, reg-id); reg-id counts only beside an instance (RFC 5626
    section 6).
    """
    quoted = params.get("+sip.instance") if params is not NO_PARAMETERS else None
    if not quoted:
        return "", 0
    instance = unquote(quoted).strip("<>")
    number = params.get("reg-id") or ""
    if number and (not (number.isascii() and number.isdigit()) or not 0 < int(number[:11]) < 2**31):
        raise RegistrationRefused(400, "Bad reg-id")
    return instance, int(number or 0)


def _same(binding: Binding, current: dict[bytes, Binding]) -> Binding | None:
    """The current binding that `binding` replaces: of the same flow of the same instance, else of an equal
    URI.
    """
    found = current.get(binding.key)
    if found is not None or binding.instance_id:
        return found
    wanted = parse_uri(binding.contact)
    for other in current.values():
        if not other.instance_id and not other.native and parse_uri(other.contact) == wanted:
            return other
    return None


def answer(request: Request, done: Plan, wall: float, bounds: Bounds = Bounds()) -> Response:
    """The 200 to `request`: every current binding with its remaining lifetime, Path, Service-Route, Date (section 10.3
    step 8).
    """
    gruu = "gruu" in request.supported
    headers = [("Contact", contact_value(binding, wall, gruu)) for binding in done.current]
    if request.has("path"):
        headers += [("Path", value) for value in request.get_all("path")]
    if bounds.service_route:
        headers += [("Service-Route", value) for value in bounds.service_route]
    if done.outbound:
        headers.append(("Require", "outbound"))
        if bounds.flow_timer:
            headers.append(("Flow-Timer", str(bounds.flow_timer)))
    headers.append(("Date", _date(int(wall))))
    return make_response(request, 200, headers=headers)


@lru_cache(maxsize=2)
def _date(second: int) -> str:
    """A Date value; many answers a second have the same."""
    return formatdate(second, usegmt=True)


def contact_value(binding: Binding, wall: float, gruu: bool = False) -> str:
    """A Contact value for `binding`: its URI, its parameters verbatim, q if it has one, and the seconds it
    still lives; with `gruu` the instance's public GRUU (RFC 5627 section 5.2).
    """
    text = f"<{binding.contact}>"
    for name, value in binding.parameters:
        text += f";{name}" if value is None else f";{name}={value}"
    if binding.q != 1.0:
        text += f";q={binding.q:.3g}"
    if gruu and binding.instance_id and not binding.native:
        text += f';pub-gruu="{public_gruu(binding.aor, binding.instance_id)}"'
    return f"{text};expires={max(0, round(binding.expires_at - wall))}"


# ---- the bindings whose phones this node owns --------------------------------------------------------------


class OwnBinding(NamedTuple):
    """A binding of this node's, the flow to its phone while that is known to live, and until when (unix seconds) the
    stored record of it lives: 0 if that must be written at the next refresh.
    """

    binding: Binding
    flow: Flow | None
    stored_until: float = 0.0


class BindingTable:
    """The bindings that this node owns, by user, with their flows.

    Bounded by `limit` bindings in all: a table that is full refuses new ones (``full``), so that the
    registrar can say 503.
    """

    def __init__(self, limit: int = 100_000) -> None:
        self._by_aor: dict[str, dict[bytes, OwnBinding]] = {}
        self._by_flow: dict[Flow, set[tuple[str, bytes]]] = {}
        # When what may end: a heap with an entry for each time that a binding was put, most of them out of date.
        self._ends: list[tuple[float, str, bytes]] = []
        self._limit = limit
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def full(self) -> bool:
        """True when no further binding is taken."""
        return self._count >= self._limit

    def put(self, binding: Binding, flow: Flow | None, stored_until: float = 0.0) -> None:
        """Remember `binding`, in place of the one with its key."""
        entries = self._by_aor.setdefault(binding.aor, {})
        before = entries.pop(binding.key, None)
        if before is None:
            self._count += 1
        else:
            self._unlink(before.flow, binding.aor, binding.key)
        entries[binding.key] = OwnBinding(binding, flow, stored_until)
        heappush(self._ends, (binding.expires_at, binding.aor, binding.key))
        if len(self._ends) > 4 * self._count + 1000:
            self._sort_ends()
        if flow is not None and flow.reliable:
            self._by_flow.setdefault(flow, set()).add((binding.aor, binding.key))

    def drop(self, aor: str, key: bytes) -> None:
        """Forget one binding, if it is here."""
        entries = self._by_aor.get(aor)
        own = entries.pop(key, None) if entries is not None else None
        if entries is None or own is None:
            return
        self._count -= 1
        if not entries:
            del self._by_aor[aor]
        self._unlink(own.flow, aor, key)

    def _unlink(self, flow: Flow | None, aor: str, key: bytes) -> None:
        if flow is None or not flow.reliable or flow not in self._by_flow:
            return
        self._by_flow[flow].discard((aor, key))
        if not self._by_flow[flow]:
            del self._by_flow[flow]

    def of(self, aor: str, wall: float) -> list[OwnBinding]:
        """The living bindings of a user, best q first."""
        entries = self._by_aor.get(aor)
        if not entries:
            return []
        living = [own for own in entries.values() if own.binding.expires_at > wall]
        if len(living) > 1:
            living.sort(key=lambda own: -own.binding.q)
        return living

    def users(self) -> list[str]:
        """The AORs that have bindings here."""
        return list(self._by_aor)

    def flow_lost(self, flow: Flow) -> None:
        """The connection is gone: its bindings stay, but can't be reached over it (430 from now on)."""
        for aor, key in self._by_flow.pop(flow, ()):
            own = self._by_aor[aor][key]
            self._by_aor[aor][key] = own._replace(flow=None)

    def expire(self, wall: float) -> int:
        """Forget what has run out; how many that were."""
        count = 0
        while self._ends and self._ends[0][0] <= wall:
            _, aor, key = heappop(self._ends)
            own = self._by_aor.get(aor, {}).get(key)
            if own is not None and own.binding.expires_at <= wall:
                self.drop(aor, key)
                count += 1
        return count

    def _sort_ends(self) -> None:
        self._ends = [(own.binding.expires_at, own.binding.aor, own.binding.key) for own in self]
        heapify(self._ends)

    def move(self, seconds: float) -> None:
        """The wall clock has jumped by `seconds`: every binding keeps the time that it has left."""
        for entries in self._by_aor.values():
            for key, (binding, flow, stored_until) in entries.items():
                moved = binding._replace(expires_at=binding.expires_at + seconds, stored_at=binding.stored_at + seconds)
                entries[key] = OwnBinding(moved, flow, stored_until and stored_until + seconds)
        self._sort_ends()

    def moved_on(self, stored: Sequence[Binding], node_id: bytes) -> None:
        """Forget the bindings that another node has replaced or removed since their phones registered here.

        `stored` is what the location store says, `node_id` this node.
        """
        for other in stored:
            own = self._by_aor.get(other.aor, {}).get(other.key)
            if own is not None and other.node_id != node_id and other.stored_at > own.binding.stored_at:
                self.drop(other.aor, other.key)

    def check_stored(self, aor: str, stored: Sequence[Binding], node_id: bytes) -> None:
        """Have a binding written at its next refresh, of which the location store says nothing or something else."""
        entries = self._by_aor.get(aor, {})
        kept = {binding.key for binding in stored if binding.node_id == node_id and binding.contact}
        for key, own in entries.items():
            if key not in kept:
                entries[key] = own._replace(stored_until=0.0)

    def __iter__(self) -> Iterator[OwnBinding]:
        for entries in list(self._by_aor.values()):
            yield from list(entries.values())


# ---- one REGISTER, written ---------------------------------------------------------------------------------


class _View(NamedTuple):
    """The bindings of a user as they were in the overlay at `read_at` (unix seconds): of `others` those count that
    other nodes own.
    """

    others: Sequence[Binding]
    read_at: float


class _Call(Enum):
    """What a REGISTER is: a refresh of bindings of ours by a phone that has spoken to nobody else since; another
    registration of such bindings, by a phone that may have been elsewhere; or anything else.
    """

    REFRESH = "refresh"
    AGAIN = "again"
    OTHER = "other"


class Registrar:
    """Carries out REGISTERs that have been authenticated: plans, writes to `location`, remembers in `table`,
    answers.

    The caller sees to it that the REGISTERs of one user come one after the other.
    """

    def __init__(self, location: LocationStore, table: BindingTable, node_id: bytes, bounds: Bounds) -> None:
        self._location = location
        self._table = table
        self._node_id = node_id
        self._bounds = bounds
        self._views: dict[str, _View] = {}

    async def change(self, request: Request, aor: str, flow: Flow, wall: float) -> Response:
        """The 200 to `request`, when every binding it makes is stored.

        Raises RegistrationRefused, or LocationUnavailable: then nothing has changed here, and in the overlay
        nothing that is known.
        """
        own = self._own(aor, wall)
        call = _call_of(request, own)
        view = self._views.get(aor)
        if call is _Call.OTHER or view is None or abs(wall - view.read_at) >= _VIEW_SECONDS:
            view = await self._read(call, aor, wall)
            own = self._own(aor, wall)
        existing = {each.key: each for each in view.others if each.aor == aor and each.expires_at > wall}
        for key, each in own.items():
            existing[key] = each.binding
        made = plan(request, aor, tuple(existing.values()), flow, self._node_id, self._bounds, wall)
        if made.puts and self._table.full:
            raise LocationUnavailable("the table of registrations is full")
        known = own if call is _Call.REFRESH else {}
        until = {put.key: _stored_until(put, known.get(put.key), wall) for put in made.puts}
        writes = [
            put.until(until[put.key])
            for put in made.puts
            if put.key not in own or own[put.key].stored_until != until[put.key]
        ]
        removes = [_for_as_long_as_stored(gone, own.get(gone.key)) for gone in made.removes]
        if writes or removes:
            try:
                await self._location.write(aor, writes, removes)
            except LocationUnavailable:
                # Nobody knows how much of it was done: what is here is written at its next refresh.
                self._table.check_stored(aor, (), self._node_id)
                self._views.pop(aor, None)
                raise
        for gone in made.removes:
            self._table.drop(aor, gone.key)
        for put in made.puts:
            self._table.put(put, flow, until[put.key])
        here = self._own(aor, wall)
        others = tuple([each for each in made.current if each.key not in here])
        self._remember(aor, _View(others, view.read_at) if here else None)
        if others:
            shown = [each if each.key in here else _as_promised(each, wall) for each in made.current]
            made = made._replace(current=tuple(shown))
        return answer(request, made, wall, self._bounds)

    def _own(self, aor: str, wall: float) -> dict[bytes, OwnBinding]:
        """The user's living bindings of this node, by key."""
        return {each.binding.key: each for each in self._table.of(aor, wall)}

    async def _read(self, call: _Call, aor: str, wall: float) -> _View:
        """The user's bindings as they are in the overlay now, our own among them, for what they are worth.

        What was read a little while ago serves a phone that registers here again: whatever another registrar may have
        stored of it meanwhile is overwritten, where it can have been there. Else a mere refresh looks at the nearest
        copy; anything else asks the peer that holds the truth.
        """
        stored = await self._location.bindings(aor, call is not _Call.REFRESH)
        self._table.moved_on(stored, self._node_id)
        self._table.check_stored(aor, stored, self._node_id)
        return _View(stored, wall)

    def _remember(self, aor: str, view: _View | None) -> None:
        """What other nodes own of the user's bindings, for refreshes to come."""
        self._views.pop(aor, None)
        if view is not None:
            self._views[aor] = view
            if len(self._views) > _VIEWS:
                del self._views[next(iter(self._views))]

    async def renew(self, aor: str, wall: float) -> None:
        """Store the user's bindings of this node anew, as they are now.  Raises LocationUnavailable."""
        own = self._table.of(aor, wall)
        if own:
            await self._location.write(aor, [_for_as_long_as_stored(each.binding, each) for each in own], ())


def _call_of(request: Request, own: Mapping[bytes, OwnBinding]) -> _Call:
    """What `request` wants, as far as that can be told before anything is looked up."""
    contacts = request.contacts
    if not own or not contacts:
        return _Call.OTHER
    call = _Call.REFRESH
    for contact in contacts:
        instance, reg_id = _instance(contact.params)
        known = own.get(binding_key(contact.uri_text, instance, reg_id))
        lifetime = contact.expires
        if lifetime is None:
            lifetime = request.expires
        if known is None or lifetime == 0:
            return _Call.OTHER
        before = known.binding
        if before.call_id != request.call_id or not 0 < request.cseq.number - before.cseq <= _IN_SEQUENCE:
            call = _Call.AGAIN
    return call


def _stored_until(put: Binding, own: OwnBinding | None, wall: float) -> float:
    """Until when the record of `put` is to live: as it is stored, if it says the same and neither ends before the phone
    may count on it nor outlives it for longer than a record written now.
    """
    longest = put.expires_at + (put.expires_at - wall) * _STORED_LONGER
    if own is not None and put.expires_at <= own.stored_until <= longest and _unchanged(put, own.binding):
        return own.stored_until
    return longest


def _as_promised(stored: Binding, wall: float) -> Binding:
    """A binding of another node as its phone knows it: not for longer than its registrar can have promised."""
    if stored.native:
        return stored
    promised = (stored.expires_at - stored.stored_at) // (1 + _STORED_LONGER)
    return stored.until(min(stored.expires_at, wall + promised))


def _unchanged(put: Binding, known: Binding) -> bool:
    return put == known._replace(cseq=put.cseq, expires_at=put.expires_at, stored_at=put.stored_at)


def _for_as_long_as_stored(binding: Binding, own: OwnBinding | None) -> Binding:
    """`binding` until its record runs out, which is later than the phone was told."""
    if own is None or own.stored_until <= binding.expires_at:
        return binding
    return binding.until(own.stored_until)
