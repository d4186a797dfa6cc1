"""UDP sockets for SIP: one listener, its flows, and the kernel's buffers (RFC 3261 section 18, RFC 3581)."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable
from struct import Struct
from struct import error as StructError
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.error import CannotListenError
from twisted.internet.protocol import DatagramProtocol

from p2psipd.proto.nat.stun import binding_response, is_stun
from p2psipd.proto.sip.flow import Address, Flow

if TYPE_CHECKING:
    from twisted.internet.udp import Port

#: Bursts, not CPU, are what UDP loses first: as much as the kernel gives, up to this.
RECEIVE_BUFFER: Final = 4 * 1024 * 1024

#: How much counts as unread, at least, where datagrams were lost in a small buffer.
LOSING: Final = 0.15

_MAX_DATAGRAM: Final = 65535
#: Octets read in one turn of the reactor: some hundred messages, after which timers and connections get theirs.
_AT_ONCE: Final = 48 * 1024
_KEPT_FLOWS: Final = 20_000
#: Linux' SO_MEMINFO: what lies in a socket's buffers, and how many datagrams found no room there.
_SO_MEMINFO: Final = 55
_MEMINFO: Final = Struct("=9I")
#: The shortest thing that can be a SIP message; shorter datagrams are keep-alives.
_SHORTEST: Final = 16


def everybody(source: str) -> bool:
    """The default of `admit`: no source is turned away."""
    return True


def _unnoticed(remote: Address, reason: str, local: Address) -> None:
    """The default of `refused`."""


class UdpFlow(Flow):
    """A pair of UDP addresses; `write` sends one datagram."""

    __slots__ = ("listener",)

    #: Nodes speak SIP to each other over TLS alone.
    peer: None = None
    domains: tuple[str, ...] = ()

    def __init__(self, listener: UdpListener, remote: Address) -> None:
        super().__init__("UDP", remote, listener.local, listener.number, listener.sent_by)
        self.listener = listener

    def towards(self, remote: Address) -> UdpFlow:
        """The flow from the same socket to another address."""
        return self if remote == self.remote else self.listener.flow(remote)

    def write(self, data: bytes) -> None:
        """Send `data` as one datagram; one that the kernel refuses is lost, as UDP may."""
        listener = self.listener
        if listener.open:
            try:
                listener.socket.sendto(data, self.remote)
            except OSError:
                # Full buffer, unreachable network, a port of 0: the retransmission timers are UDP's answer to all
                # of them.
                listener.counters["datagrams_lost"] += 1

    @property
    def alive(self) -> bool:
        """Whether the socket is still open."""
        return self.listener.open


class UdpListener(DatagramProtocol):
    """One UDP socket. `receive(flow, data)` is called for each datagram that may be SIP.

    `number` tells listeners of one node apart; `sent_by` goes into our Via. `admit(host)` is asked before anything
    is read of a datagram. `counters` counts datagrams that the kernel would not take ("datagrams_lost"), those that
    came when its buffer was full because we read too slowly ("datagrams_dropped", as of the last `queued`), those not
    admitted ("datagrams_refused"), what was too short to be a message ("datagrams_short": keep-alives, answered by
    nobody over UDP, RFC 5626 section 3.5), STUN Binding requests, which are answered ("stun_bindings", section 3.5.2),
    and the rest of what begins like STUN ("datagrams_other"); `refused(remote, reason, local)` is told of what is none.
    """

    noisy = False

    def __init__(
        self,
        number: int,
        receive: Callable[[Flow, bytes], None],
        sent_by_host: str = "",
        admit: Callable[[str], bool] = everybody,
        counters: Counter[str] | None = None,
        refused: Callable[[Address, str, Address], None] = _unnoticed,
    ) -> None:
        self.counters: Counter[str] = Counter() if counters is None else counters
        self.number = number
        self.local: Address = ("", 0)
        self.sent_by: Address = ("", 0)
        self.open = False
        self._receive = receive
        self._admit = admit
        self._refused = refused
        self._sent_by_host = sent_by_host
        self._flows: dict[Address, UdpFlow] = {}
        self.socket: Any = None
        self._dropped = 0

    def listen(self, reactor: Any, address: Address) -> Port:
        """Bind to `address` (numeric host, port or 0). Raises twisted's CannotListenError."""
        port: Port = reactor.listenUDP(address[1], self, interface=address[0], maxPacketSize=_MAX_DATAGRAM)
        port.maxThroughput = _AT_ONCE
        return port

    def startProtocol(self) -> None:
        """The socket is bound: enlarge its buffer, and learn our own address."""
        transport: Any = self.transport
        handle = transport.getHandle()
        for option in (getattr(socket, "SO_RCVBUFFORCE", 33), socket.SO_RCVBUF):
            try:
                handle.setsockopt(socket.SOL_SOCKET, option, RECEIVE_BUFFER)
                break
            except OSError:
                continue
        host = transport.getHost()
        self.local = (host.host, host.port)
        self.sent_by = (self._sent_by_host or host.host, host.port)
        self.socket = handle
        self.open = True

    def stopProtocol(self) -> None:
        """The socket is closed."""
        self.open = False
        self._flows.clear()

    def queued(self) -> float:
        """What lies in the kernel's buffer and nobody has read yet: 1 is a full one of the size that we ask for, so
        that a number means the same delay also where we get less; at least `LOSING` where some found no room since the
        last time; 0 where the kernel does not tell.
        """
        if not self.open:
            return 0.0
        try:
            found = self.socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
            used, *_, dropped = _MEMINFO.unpack(found)
        except (OSError, StructError):
            return 0.0
        level: float = min(1.0, used / (2 * RECEIVE_BUFFER))
        if dropped > self._dropped:
            self.counters["datagrams_dropped"] += dropped - self._dropped
            self._dropped = dropped
            return max(level, LOSING)
        return level

    def flow(self, remote: Address) -> UdpFlow:
        """The flow between this socket and `remote`; kept, because a call uses the same one a dozen times."""
        found = self._flows.get(remote)
        if found is None:
            if len(self._flows) >= _KEPT_FLOWS:
                self._flows.clear()
            found = self._flows[remote] = UdpFlow(self, remote)
        return found

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """One datagram: a message, a keep-alive, or something else."""
        if not self._admit(addr[0]):
            self.counters["datagrams_refused"] += 1
        elif len(datagram) < _SHORTEST:
            self.counters["datagrams_short"] += 1
        elif datagram[0] < 4:
            self._not_sip(datagram, (addr[0], addr[1]))
        else:
            remote = addr if len(addr) == 2 else (addr[0], addr[1])
            self._receive(self._flows.get(remote) or self.flow(remote), datagram)

    def _not_sip(self, datagram: bytes, remote: Address) -> None:
        answer = binding_response(datagram, remote)
        if answer is None:
            self.counters["datagrams_other"] += 1
            if not is_stun(datagram):
                # A Binding indication is some phones' keep-alive.
                self._refused(remote, "neither SIP nor STUN", self.local)
        else:
            self.counters["stun_bindings"] += 1
            UdpFlow(self, remote).write(answer)

    def connectionRefused(self) -> None:
        """Only connected sockets hear of it."""
        self.counters["datagrams_lost"] += 1


__all__ = ["RECEIVE_BUFFER", "CannotListenError", "UdpFlow", "UdpListener", "everybody"]
