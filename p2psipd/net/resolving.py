"""Host names to addresses with the system's own resolver, for the few names that stand in configurations."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import (
    IAddress,
    IHostResolution,
    IReactorPluggableNameResolver,
    IResolutionReceiver,
)
from zope.interface import implementer


@implementer(IResolutionReceiver)
class _Addresses:
    """Gathers the addresses of one resolution."""

    def __init__(self, host: str, result: Deferred[list[str]]) -> None:
        self._host = host
        self._result = result
        self._found: list[str] = []

    def resolutionBegan(self, resolution: IHostResolution) -> None:
        """Nothing to do yet."""

    def addressResolved(self, address: IAddress) -> None:
        """One address."""
        if isinstance(address, IPv4Address | IPv6Address):
            self._found.append(address.host)

    def resolutionComplete(self) -> None:
        """That was all."""
        if self._found:
            self._result.callback(list(dict.fromkeys(self._found)))
        else:
            self._result.errback(DNSLookupError(f"no address for {self._host}"))


def resolve(reactor: object, host: str) -> Deferred[list[str]]:
    """The addresses of ``host``, at least one; fails with DNSLookupError."""
    result: Deferred[list[str]] = Deferred()
    resolver: Any = cast(IReactorPluggableNameResolver, reactor).nameResolver
    resolver.resolveHostName(_Addresses(host, result), host)
    return result
