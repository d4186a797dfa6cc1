"""``twistd p2psip --config FILE``: the configuration becomes running services.  All wiring is here, and
nothing else.

The order of things at the start matters.  ``reactor.seconds`` becomes the monotonic clock before anything
is scheduled: Twisted follows the wall clock otherwise, and a step of an hour would fire or stop every
timer.  Then the configuration and the files that it names are checked whole; a fault ends the process with
exit code 78 before any socket is opened.
"""

from __future__ import annotations

import os
import secrets
import stat
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from twisted.application.service import IService, MultiService
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.python.usage import Options as UsageOptions
from twisted.python.usage import UsageError

from p2psipd import config
from p2psipd.logs import Log, make_log
from p2psipd.net.links import LinkLimits
from p2psipd.net.tls import CertificateFileError, KeyLog
from p2psipd.node import NodeService
from p2psipd.proto.reload.ids import NodeId
from p2psipd.proto.reload.kademlia import Remembered
from p2psipd.proto.reload.peer_parameters import PeerParameters
from p2psipd.services.admin import ControlSocketInUse
from p2psipd.services.overlay_factory import make_overlay
from p2psipd.sip_wiring import SipFiles, SipSide, SipWiring, applications_of, make_sip
from p2psipd.store.sqlite import ForeignStateError, SqliteStore, StateError
from p2psipd.supervision import settle_collector

if TYPE_CHECKING:
    from p2psipd.config import Material, NodeConfig

_SECRET_OCTETS = 32
_SECRET_NAME = "sip-secret"


class Options(UsageOptions):
    """``twistd p2psip``'s options."""

    optParameters = [
        ["config", "c", None, "The configuration file (TOML); every key is explained in etc/p2psipd.toml."]
    ]
    longdesc = "A peer-to-peer SIP node. `p2psip check FILE` checks a configuration without starting."

    def postOptions(self) -> None:
        """The configuration file must be named."""
        if not self["config"]:
            raise UsageError("--config FILE is missing")


def makeService(options: Options) -> IService:
    """twistd's way in: the services of the node that the configuration file describes.

    Ends the process with exit code 78 when the configuration is at fault, with every fault on standard error.
    """
    from twisted.internet import reactor

    cast(Any, reactor).seconds = time.monotonic
    try:
        checked, material = config.load_all(options["config"], os.environ, read=config.read_document_apart)
        parent: Mapping[str, Any] = options.parent or {}
        log = _log(checked, parent)
    except (config.ConfigError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(config.EXIT_CONFIG) from None
    return cast(IService, Launcher(reactor, checked, material, log, os.path.abspath(options["config"])))


class Launcher(MultiService):
    """Makes the node when it is started, which is after twistd has become a daemon.

    SQLite's files must not be carried across a fork.
    """

    def __init__(self, reactor: object, checked: NodeConfig, material: Material, log: Log, file: str) -> None:
        MultiService.__init__(self)
        self._make: Callable[[], NodeService] = lambda: make_node(reactor, checked, material, log, file)
        self._log = log
        self._checked = checked

    def setServiceParent(self, parent: Any) -> None:
        """Give the application our log observer on the way in; twistd asks it for one."""
        if isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self._log.observer)
        MultiService.setServiceParent(self, parent)

    def startService(self) -> None:
        """Make the node and start it; what keeps it from starting ends the process with a line that says so."""
        log = Logger(namespace="p2psipd.node")
        try:
            if os.stat(self._checked.identity.key).st_mode & stat.S_IROTH:
                told = "everybody on this machine may read this private key: chmod 600"
                log.warn("{fault}", fault=self._checked.fault("identity.key", told))
            node: Any = self._make()
            node.setServiceParent(self)
            MultiService.startService(self)
            settle_collector()
        except (config.ConfigError, CertificateFileError) as error:
            log.critical("{error}", error=error)
            raise SystemExit(config.EXIT_CONFIG) from None
        except StateError as error:
            # A full disk or another process may pass: systemd is to try again.
            log.critical("{fault}", fault=self._checked.fault("node.state", str(error)))
            raise SystemExit(config.EXIT_CONFIG if isinstance(error, ForeignStateError) else 1) from None
        except CannotListenError as error:
            key = config.listener_key(self._checked, error.interface, error.port)
            log.critical("{fault}", fault=self._checked.fault(key, f"cannot listen there: {error.socketError}"))
            raise SystemExit(1) from None
        except ControlSocketInUse as error:
            log.critical("{fault}", fault=self._checked.fault("node.control", str(error)))
            raise SystemExit(1) from None


def _log(checked: NodeConfig, parent: Mapping[str, Any]) -> Log:
    """The log as the configuration wants it, else as twistd was told."""
    file = checked.node.log_file or parent.get("logfile") or ("-" if parent.get("nodaemon") else "twistd.log")
    return make_log(file, checked.node.log_format, checked.node.log_level)


def make_node(reactor: object, checked: NodeConfig, material: Material, log: Log, file: str) -> NodeService:
    """The services of one node, wired but not started."""
    peer, now = checked.peer, cast(IReactorTime, reactor).seconds()
    assert peer is not None, "config.load has refused a file without [peer]"
    keylog = KeyLog(checked.node.keylog) if checked.node.keylog else None
    report = Logger(namespace="p2psipd.store")
    store = SqliteStore(checked.node.state, lambda text: report.warn("{text}", text=text))
    state = store.load()
    own = NodeId(material.credential.certificate.node_id)
    if state.node_id not in (None, own):
        text = f"{checked.node.state} belongs to another node, {state.node_id.hex()}; expected a file of this node"
        raise config.ConfigError([checked.fault("node.state", text)])
    store.set_node_id(own)
    observer = SipWiring()
    sip_section = checked.sip if checked.has("sip") else None
    parameters = PeerParameters(
        addresses=tuple((host, port) for host, port in peer.advertised),
        bootstrap=tuple(dict.fromkeys((*peer.bootstrap, *material.configuration.bootstrap_nodes))),
        remembered=tuple(Remembered(known.node_id, known.addresses) for known in state.peers[: peer.remembered_peers]),
        applications=applications_of(sip_section),
        first=peer.first,
        client=not checked.has("peer"),
    )
    node = make_overlay(
        reactor,
        material.configuration,
        material.credential,
        parameters,
        _limits(peer),
        listen=(peer.listen.host, peer.listen.port) if checked.has("peer") else None,
        now=now,
        store=store,
        rows=state.rows,
        document=checked.overlay.document,
        keylog=keylog,
        observer=observer,
    )
    sip: SipSide | None = None
    files: SipFiles | None = None
    if sip_section is not None:
        files = SipFiles(sip_section, keylog, material.users)
        secret = state.octets.get(_SECRET_NAME) or secrets.token_bytes(_SECRET_OCTETS)
        store.set_octets(_SECRET_NAME, secret)
        sip = make_sip(reactor, checked, material, node, files, secret, observer)
    return NodeService(reactor, checked, node, sip, files, log, file)


def _limits(peer: config.PeerSection) -> LinkLimits:
    return LinkLimits(
        links=peer.max_links,
        links_per_address=peer.max_links_per_address,
        handshakes=peer.max_handshakes,
        handshakes_per_address=peer.max_handshakes_per_address,
        handshake_seconds=peer.handshake_seconds,
        connect_seconds=peer.connect_seconds,
        write_buffer=peer.max_write_buffer_bytes,
    )
