"""REGISTER, and the bindings of this node's phones (RFC 3261 section 10.3)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from twisted.internet.defer import DeferredLock
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
        self._locks: dict[str, DeferredLock] = {}

    async def register(self, request: Request, flow: Flow) -> Response:
        """A REGISTER: proved, planned, written where bindings are kept, and only then answered.

        Raises Refused, RegistrationRefused, LocationUnavailable.
        """
        uri = await self._gate.registering(flow, request, self._clocks.wall())
        aor = aor_of(uri.bare())
        async with self._turn(aor):
            return await self._registrar.change(request, aor, flow, self._clocks.wall())

    @asynccontextmanager
    async def _turn(self, aor: str) -> AsyncIterator[None]:
        lock = self._locks.setdefault(aor, DeferredLock())
        await lock.acquire()
        try:
            yield
        finally:
            lock.release()
            if not lock.locked and not lock.waiting:
                self._locks.pop(aor, None)

    async def announce(self) -> None:
        """Store the bindings of this node anew: the wall clock, by which they run out, has jumped."""
        aors = dict.fromkeys(own.binding.aor for own in self._table)
        self.log.info("the clock has jumped: {count} users' bindings are stored anew", count=len(aors))
        for aor in aors:
            try:
                async with self._turn(aor):
                    await self._registrar.renew(aor, self._clocks.wall())
            except LocationUnavailable as error:
                self.log.warn("{error}; found again when the phone registers next", error=error)
