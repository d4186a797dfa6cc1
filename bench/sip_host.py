"""The server side of `bench.sip` that is ours: the real SipService over real sockets, its location a dictionary.

`python -m bench.sip_host SPEC.json` prints "ready" and serves until its stdin is closed. The specification names
`address`, `domain`, `password` (everybody's), and optionally `certificate` and `key` (PEM: SIPS on port 5061),
`authorities` (who may have signed the certificates of TLS phones that are dialled), and `node` (a numeric host:
what comes from it over UDP or TLS comes from another node of the overlay, which has challenged the caller already).
"""

from __future__ import annotations

import gc
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet import epollreactor

epollreactor.install()

from twisted.internet import reactor, stdio  # noqa: E402
from twisted.internet.protocol import Protocol  # noqa: E402

from p2psipd.net.datagrams import UdpFlow, UdpListener  # noqa: E402
from p2psipd.net.domain_tls import DomainTls  # noqa: E402
from p2psipd.net.tls import ServerTls  # noqa: E402
from p2psipd.proto.sip.digest import Algorithm, ha1  # noqa: E402
from p2psipd.proto.sip.flow import Address  # noqa: E402
from p2psipd.proto.sip.limits import LimitSettings  # noqa: E402
from p2psipd.proto.sip.locating import Binding, NodeIdentity  # noqa: E402
from p2psipd.proto.sip.registrar import BindingTable  # noqa: E402
from p2psipd.services.locator import Locator, OverlayBindings, OwnBindings  # noqa: E402
from p2psipd.services.sip import SipService, SipSettings  # noqa: E402

NODE_ID = bytes(range(16))


class Location:
    """What the overlay would hold."""

    def __init__(self) -> None:
        self._entries: dict[str, dict[bytes, Binding]] = {}

    async def bindings(self, aor: str, fresh: bool = False) -> Sequence[Binding]:
        return [each for each in self._entries.get(aor, {}).values() if each.expires_at > time.time()]

    async def write(self, aor: str, puts: Sequence[Binding], removes: Sequence[Binding]) -> None:
        entries = self._entries.setdefault(aor, {})
        for binding in removes:
            entries.pop(binding.key, None)
        for binding in puts:
            entries[binding.key] = binding


class Passwords:
    """Everybody's password is the same; HA1 values are made at first use, as from a file."""

    def __init__(self, password: str) -> None:
        self._password = password
        self._known: dict[tuple[str, str], Mapping[str, bytes]] = {}

    async def ha1(self, user: str, realm: str, fresh: bool = False) -> Mapping[str, bytes] | None:
        found = self._known.get((user, realm))
        if found is None:
            found = self._known[user, realm] = {
                each.value: bytes.fromhex(ha1(each, user, realm, self._password))
                for each in (Algorithm.MD5, Algorithm.SHA_256)
            }
        return found


class NodeFlow(UdpFlow):
    """A flow to another node of the overlay. Real ones are TLS; this one spares both servers of the comparison the
    challenge, and nothing else.
    """

    __slots__ = ()
    peer: Any = NodeIdentity(bytes(16), f"{bytes(16).hex()}@registrar.bench.example", True)


def trust(host: str) -> None:
    """Let what comes from `host` be of another node."""
    plain = UdpListener.flow

    def flow(self: UdpListener, remote: Address) -> UdpFlow:
        if remote[0] != host:
            return plain(self, remote)
        found = self._flows.get(remote)
        if found is None:
            found = self._flows[remote] = NodeFlow(self, remote)
        return found

    def received(self: SipService, flow: Any, message: Any) -> None:
        if flow.secure and flow.remote[0] == host:
            flow.peer = NodeFlow.peer
        hand_over(self, flow, message)

    hand_over = SipService._received
    UdpListener.flow = flow  # type: ignore[method-assign]
    SipService._received = received  # type: ignore[method-assign]


class UntilClosed(Protocol):
    """Ends the process when its stdin is closed."""

    def connectionLost(self, reason: object = None) -> None:
        reactor.stop()  # type: ignore[attr-defined]


def main(spec: dict[str, Any]) -> None:
    """Serve."""
    reactor.seconds = time.monotonic  # type: ignore[attr-defined]
    address, domain = spec["address"], spec["domain"]
    if spec.get("node"):
        trust(spec["node"])
    location, table = Location(), BindingTable()
    locator = Locator((OwnBindings(table, NODE_ID, (domain,)), OverlayBindings(location, table, NODE_ID, (domain,))))
    tls = ServerTls(spec["certificate"], spec["key"]) if spec.get("certificate") else None
    settings = SipSettings(
        domains=(domain,),
        overlay=domain,
        node_id=NODE_ID,
        udp=((address, 5060),),
        tcp=((address, 5060),),
        tls_addresses=((address, 5061),) if tls is not None else (),
        tls=tls,
        tls_client=DomainTls(spec["authorities"]) if spec.get("authorities") else None,
        # All load comes from one address, and nothing of it is abuse.
        abuse=LimitSettings(points=10**9, messages_per_source=0, requests_per_user=0),
        **spec.get("settings", {}),
    )
    service = SipService(
        settings,
        location=location,
        credentials=Passwords(spec["password"]),
        locate=locator.locate,
        connector=None,
        table=table,
        reactor=reactor,
        random=random.SystemRandom(),
        wall=time.time,
    )
    service.startService()
    # As the node does: what lives as long as the process is no work for the collector.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    stdio.StandardIO(UntilClosed())
    print("ready", flush=True)
    reactor.run()  # type: ignore[attr-defined]
    print(json.dumps(service.statistics()), flush=True)


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        main(json.load(file))
