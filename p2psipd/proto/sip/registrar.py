"""The registrar's rules: what a REGISTER does to a user's bindings (RFC 3261 section 10.3, RFC 3327, RFC
5626).

:func:`plan` decides, without touching anything, which bindings a REGISTER adds, replaces and removes; the
caller writes them where bindings are kept and only then answers with :func:`answer`. A REGISTER that must
fail raises :class:`RegistrationRefused`. :class:`BindingTable` is the node's memory of the bindings whose
phones it owns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from email.utils import formatdate
from typing import Final, NamedTuple

from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.headers import NameAddr, Parameters, unquote
from p2psipd.proto.sip.locating import Binding, LocationStore, LocationUnavailable, binding_key, flow_text
from p2psipd.proto.sip.message import Request, Response, make_response
from p2psipd.proto.sip.uri import SipUri, parse_uri

SUPPORTED: Final = ("path", "outbound")
"""Option tags that a REGISTER may require of this registrar."""

_OWN_PARAMETERS: Final = ("expires", "q")
_ONE_HOUR: Final = 3600
_MAX_CONTACT: Final = 1024
_MAX_PATHS: Final = 10


class Bounds(NamedTuple):
    """The registrar's limits: lifetimes in seconds, and how many contacts a user may have."""

    min_expires: int = 60
    max_expires: int = 3600
    default_expires: int = 3600
    max_contacts: int = 10


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
    unsupported = [tag for tag in request.require if tag not in SUPPORTED]
    if unsupported:
        raise RegistrationRefused(420, None, [("Unsupported", ", ".join(unsupported))])
    current = {binding.key: binding for binding in existing if binding.expires_at > wall}
    if request.contact_star:
        return Plan((), _remove_all(request, current), ())
    if not request.contacts:
        return Plan((), (), tuple(current.values()))
    wanted = [_wanted(request, aor, contact, flow, node_id, bounds, wall) for contact in request.contacts]
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
    outbound = "outbound" in request.supported and any(put.instance_id and put.reg_id for put in puts.values())
    return Plan(tuple(puts.values()), tuple(removes.values()), tuple(current.values()), outbound)


def _remove_all(request: Request, current: dict[bytes, Binding]) -> tuple[Binding, ...]:
    """`Contact: *`: alone and with Expires: 0, it removes every binding (step 6)."""
    if len(request.get_all("contact")) != 1 or request.expires != 0:
        raise RegistrationRefused(400, "Invalid Request")
    number = request.cseq.number
    for binding in current.values():
        if binding.call_id == request.call_id and number <= binding.cseq:
            raise RegistrationRefused(500, "Out of Order")
    return tuple(current.values())


def _wanted(
    request: Request, aor: str, contact: NameAddr, flow: Flow, node_id: bytes, bounds: Bounds, wall: float
) -> Binding:
    """The binding that one Contact value asks for; with `expires_at` not after `wall` it asks for removal."""
    text = contact.uri_text
    uri = contact.uri
    if len(text) > _MAX_CONTACT or (isinstance(uri, SipUri) and not uri.host):
        raise RegistrationRefused(400, "Bad Contact")
    lifetime = contact.expires
    if lifetime is None:
        lifetime = request.expires
    if lifetime is None:
        lifetime = bounds.default_expires
    if 0 < lifetime < bounds.min_expires and lifetime < _ONE_HOUR:
        raise RegistrationRefused(423, None, [("Min-Expires", str(bounds.min_expires))])
    instance, reg_id = _instance(contact.params)
    paths = request.get_all("path")
    if len(paths) > _MAX_PATHS:
        raise RegistrationRefused(400, "Too Many Path Values")
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
        parameters=tuple((name, value) for name, value in contact.params if name.lower() not in _OWN_PARAMETERS),
        user_agent=(request.get("user-agent") or "")[:128],
        stored_at=wall,
    )


def _instance(params: Parameters) -> tuple[str, int]:
    """(instance-id without its quotes and brackets, reg-id); reg-id counts only beside an instance (RFC 5626
    section 6).
    """
    quoted = params.get("+sip.instance")
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


def answer(request: Request, done: Plan, wall: float) -> Response:
    """The 200 to `request`: every current binding with its remaining lifetime, Path, Date (section 10.3 step
    8).
    """
    headers = [("Contact", contact_value(binding, wall)) for binding in done.current]
    headers += [("Path", value) for value in request.get_all("path")]
    if done.outbound:
        headers.append(("Require", "outbound"))
    headers.append(("Date", formatdate(wall, usegmt=True)))
    return make_response(request, 200, headers=headers)


def contact_value(binding: Binding, wall: float) -> str:
    """A Contact value for `binding`: its URI, its parameters verbatim, q if it has one, and the seconds it
    still lives.
    """
    text = f"<{binding.contact}>"
    for name, value in binding.parameters:
        text += f";{name}" if value is None else f";{name}={value}"
    if binding.q != 1.0:
        text += f";q={binding.q:.3g}"
    return f"{text};expires={max(0, round(binding.expires_at - wall))}"


# ---- the bindings whose phones this node owns --------------------------------------------------------------


class OwnBinding(NamedTuple):
    """A binding of this node's, and the flow to its phone while that is known to live."""

    binding: Binding
    flow: Flow | None


class BindingTable:
    """The bindings that this node owns, by user, with their flows.

    Bounded by `limit` bindings in all: a table that is full refuses new ones (``full``), so that the
    registrar can say 503.
    """

    def __init__(self, limit: int = 100_000) -> None:
        self._by_aor: dict[str, dict[bytes, OwnBinding]] = {}
        self._by_flow: dict[Flow, set[tuple[str, bytes]]] = {}
        self._limit = limit
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def full(self) -> bool:
        """True when no further binding is taken."""
        return self._count >= self._limit

    def put(self, binding: Binding, flow: Flow | None) -> None:
        """Remember `binding`, in place of the one with its key."""
        self.drop(binding.aor, binding.key)
        self._by_aor.setdefault(binding.aor, {})[binding.key] = OwnBinding(binding, flow)
        self._count += 1
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
        if flow is None or flow not in self._by_flow:
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

    def flow_lost(self, flow: Flow) -> None:
        """The connection is gone: its bindings stay, but can't be reached over it (430 from now on)."""
        for aor, key in self._by_flow.pop(flow, ()):
            own = self._by_aor[aor][key]
            self._by_aor[aor][key] = own._replace(flow=None)

    def expire(self, wall: float) -> int:
        """Forget what has run out; how many that were."""
        dead = [(own.binding.aor, own.binding.key) for own in self if own.binding.expires_at <= wall]
        for aor, key in dead:
            self.drop(aor, key)
        return len(dead)

    def move(self, seconds: float) -> None:
        """The wall clock has jumped by `seconds`: every binding keeps the time that it has left."""
        for entries in self._by_aor.values():
            for key, (binding, flow) in entries.items():
                moved = binding._replace(
                    expires_at=binding.expires_at + seconds, stored_at=binding.stored_at + seconds
                )
                entries[key] = OwnBinding(moved, flow)

    def moved_on(self, stored: Sequence[Binding], node_id: bytes) -> None:
        """Forget the bindings that another node has replaced or removed since their phones registered here.

        `stored` is what the location store says, `node_id` this node.
        """
        for other in stored:
            own = self._by_aor.get(other.aor, {}).get(other.key)
            if own is not None and other.node_id != node_id and other.stored_at > own.binding.stored_at:
                self.drop(other.aor, other.key)

    def __iter__(self) -> Iterator[OwnBinding]:
        for entries in list(self._by_aor.values()):
            yield from list(entries.values())


# ---- one REGISTER, written ---------------------------------------------------------------------------------


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

    async def change(self, request: Request, aor: str, flow: Flow, wall: float) -> Response:
        """The 200 to `request`, when every binding it makes is stored.

        Raises RegistrationRefused, or LocationUnavailable: then nothing has changed, as far as that could be
        undone.
        """
        stored = await self._location.bindings(aor, True)
        self._table.moved_on(stored, self._node_id)
        existing = {binding.key: binding for binding in stored if binding.aor == aor and binding.expires_at > wall}
        existing.update((own.binding.key, own.binding) for own in self._table.of(aor, wall))
        made = plan(request, aor, tuple(existing.values()), flow, self._node_id, self._bounds, wall)
        if made.puts and self._table.full:
            raise LocationUnavailable("the table of registrations is full")
        await self._write(aor, made, existing)
        for binding in made.removes:
            self._table.drop(aor, binding.key)
        for binding in made.puts:
            self._table.put(binding, flow)
        return answer(request, made, wall)

    async def renew(self, aor: str, wall: float) -> None:
        """Store the user's bindings of this node anew, as they are now.  Raises LocationUnavailable."""
        for own in self._table.of(aor, wall):
            await self._location.put(aor, own.binding)

    async def _write(self, aor: str, made: Plan, before: dict[bytes, Binding]) -> None:
        """All changes or none: what was written before one failed is put back as well as it goes."""
        done: list[Binding] = []
        try:
            for binding in made.puts:
                await self._location.put(aor, binding)
                done.append(binding)
            for binding in made.removes:
                await self._location.remove(aor, binding)
                done.append(binding)
        except LocationUnavailable:
            for binding in done:
                await self._put_back(aor, binding, before.get(binding.key))
            raise

    async def _put_back(self, aor: str, binding: Binding, old: Binding | None) -> None:
        """Best effort: what can't be undone outlives its failed REGISTER until it expires."""
        with suppress(LocationUnavailable):
            if old is None:
                await self._location.remove(aor, binding)
            else:
                await self._location.put(aor, old)
