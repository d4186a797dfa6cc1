"""REGISTER, and the bindings of this node's phones (RFC 3261 section 10.3)."""

from __future__ import annotations

from collections import deque

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from p2psipd.proto.sip.authentication import Gatekeeper
from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.locating import LocationUnavailable, aor_of
from p2psipd.proto.sip.message import Request, Response
from p2psipd.proto.sip.registrar import BindingTable, Registrar
from p2psipd.services.sip.clock import Clocks


class Registering:
    """Changes bindings, those of one user one after the other."""

    log = Logger()

    def __init__(self, gate: Gatekeeper, registrar: Registrar, table: BindingTable, clocks: Clocks) -> None:
        self._gate = gate
        self._registrar = registrar
        self._table = table
        self._clocks = clocks
        # Users whose bindings are being changed, and who waits to change them next.
        self._busy: dict[str, deque[Deferred[None]] | None] = {}

    async def register(self, request: Request, flow: Flow) -> Response:
        """A REGISTER: proved, planned, written where bindings are kept, and only then answered.

        Raises Refused, RegistrationRefused, LocationUnavailable.
        """
        uri = await self._gate.registering(flow, request, self._clocks.wall())
        aor = aor_of(uri)
        await self._turn(aor)
        try:
            return await self._registrar.change(request, aor, flow, self._clocks.wall())
        finally:
            self._pass_on(aor)

    async def _turn(self, aor: str) -> None:
        """Wait until all who came before have done with the bindings of `aor`; then they are ours to change."""
        if aor not in self._busy:
            self._busy[aor] = None
            return
        queue = self._busy[aor]
        if queue is None:
            queue = self._busy[aor] = deque()
        mine: Deferred[None] = Deferred()
        queue.append(mine)
        await mine

    def _pass_on(self, aor: str) -> None:
        """The bindings of `aor` are whose turn is next."""
        queue = self._busy[aor]
        if queue:
            queue.popleft().callback(None)
        else:
            del self._busy[aor]

    async def announce(self) -> None:
        """Store the bindings of this node anew: the wall clock, by which they run out, has jumped."""
        aors = dict.fromkeys(own.binding.aor for own in self._table)
        self.log.info("the clock has jumped: {count} users' bindings are stored anew", count=len(aors))
        for aor in aors:
            try:
                await self._turn(aor)
                try:
                    await self._registrar.renew(aor, self._clocks.wall())
                finally:
                    self._pass_on(aor)
            except LocationUnavailable as error:
                self.log.warn("{error}; found again when the phone registers next", error=error)
