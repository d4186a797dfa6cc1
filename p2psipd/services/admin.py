"""The control service: HTTP with JSON over a Unix socket, for ``p2psip status`` and its like.

Who may open the socket (mode 0660) may ask and order everything; the file's owner and group are the access
rule. What can be asked is a table of resources, made in ``app.py``; this module only speaks HTTP.
twisted.web is imported when the first request comes.  There is no access log: twisted.web's formatter wants
a reactor on wall time, ours is monotonic.

Every answer is one JSON value; an error is ``{"error": "..."}`` with a status of 400 and above.
"""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IAddress, IListeningPort, IReactorTCP, IReactorUNIX
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from p2psipd.proto.reload.errors import NotFound, ReloadError, RequestTimeout

if TYPE_CHECKING:
    from twisted.web.http import Request
    from twisted.web.server import Site

#: The query's parameters, each the last given.
Parameters = Mapping[str, str]
Answer = Callable[[Parameters], "Awaitable[Any] | Any"]

_MODE: Final = 0o660
_LARGEST_BODY: Final = 1 << 20


class BadRequest(ValueError):
    """A parameter is missing or not what was expected; the message says which."""


class Text(str):
    """An answer that is plain text and not JSON."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"


class Resource(NamedTuple):
    """One thing to ask (GET) or to order (POST)."""

    method: str
    answer: Answer


class ControlSocketInUse(Exception):
    """Another node already serves this control socket."""


class AdminService(Service):
    """Serves ``resources`` (by path, such as ``/status``) on a Unix socket.

    ``metrics`` is an address that serves the one resource ``/metrics`` over TCP too, None for none.
    """

    name = "admin"

    def __init__(
        self,
        reactor: object,
        path: str,
        resources: Mapping[str, Resource],
        metrics: tuple[str, int] | None = None,
    ) -> None:
        self._reactor = reactor
        self._path = path
        self._resources = resources
        self._metrics = metrics
        self._ports: list[IListeningPort] = []

    def startService(self) -> None:
        """Listen.  Raises :class:`ControlSocketInUse`, or twisted's CannotListenError."""
        _remove_stale(self._path)
        factory = _LazySite(self._reactor, self._resources)
        self._ports.append(cast(IReactorUNIX, self._reactor).listenUNIX(self._path, cast(Any, factory), mode=_MODE))
        if self._metrics is not None and "/metrics" in self._resources:
            host, port = self._metrics
            only = _LazySite(self._reactor, {"/metrics": self._resources["/metrics"]})
            self._ports.append(cast(IReactorTCP, self._reactor).listenTCP(port, cast(Any, only), interface=host))
        Service.startService(self)

    async def _stop(self) -> None:
        ports, self._ports = self._ports, []
        for port in ports:
            await maybeDeferred(port.stopListening)

    def stopService(self) -> Deferred[None]:
        """Listen no more."""
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stop())


def _remove_stale(path: str) -> None:
    """Remove the socket that a node left behind when it was killed.

    One that is served is left alone, and so is what is no socket: it is a file that somebody needs.
    """
    if not os.path.exists(path):
        return
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        raise ControlSocketInUse(f"{path}: expected a socket or nothing yet, this is a file")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError as error:
            raise ControlSocketInUse(f"{path}: {error.strerror or error}") from None
        else:
            raise ControlSocketInUse(f"{path}: another node is running on this control socket")


class _LazySite(Factory):
    """Makes the twisted.web site when the first connection comes."""

    noisy = False

    def __init__(self, reactor: object, resources: Mapping[str, Resource]) -> None:
        self._reactor = reactor
        self._resources = resources
        self._site: Site | None = None

    def buildProtocol(self, addr: IAddress | None) -> Any:
        if self._site is None:
            self._site = _make_site(self._reactor, self._resources)
        return self._site.buildProtocol(addr)


def _make_site(reactor: object, resources: Mapping[str, Resource]) -> Site:
    from twisted.web.resource import Resource as WebResource
    from twisted.web.server import NOT_DONE_YET, Site

    class Root(WebResource):
        isLeaf = True

        def render(self, request: Any) -> int:
            """Every method and path; the answer may take its time."""
            _serve(resources, request)
            return NOT_DONE_YET

    class QuietSite(Site):
        def log(self, request: Request) -> None:
            """No access log."""

    make: Any = QuietSite
    root: Any = Root
    site: Site = make(root(), timeout=60, reactor=reactor)
    site.displayTracebacks = False
    return site


def _serve(resources: Mapping[str, Resource], request: Any) -> None:
    """Answer one request, now or later; a client that goes away cancels what it asked for."""
    work = Deferred.fromCoroutine(_answer(resources, request))

    def gone(_: object) -> None:
        work.cancel()

    request.notifyFinish().addErrback(gone)

    def done(result: tuple[int, str, bytes]) -> None:
        status, content_type, body = result
        request.setResponseCode(status)
        request.setHeader(b"content-type", content_type.encode())
        request.setHeader(b"content-length", str(len(body)).encode())
        request.write(body)
        request.finish()

    work.addCallbacks(done, lambda failure: failure.trap(CancelledError))


async def _answer(resources: Mapping[str, Resource], request: Any) -> tuple[int, str, bytes]:
    """Status, content type and body."""
    path = request.path.decode("ascii", "replace")
    resource = resources.get(path)
    if resource is None:
        return _error(404, f"no resource {path}; there are {', '.join(sorted(resources))}")
    if request.method.decode("ascii", "replace") != resource.method:
        return _error(405, f"{path} is asked with {resource.method}")
    try:
        parameters = {name.decode(): values[-1].decode() for name, values in (request.args or {}).items() if values}
        parameters.update(_body_parameters(request))
        value = resource.answer(parameters)
        if isawaitable(value):
            value = await value
    except UnicodeDecodeError:
        return _error(400, "expected UTF-8")
    except BadRequest as error:
        return _error(400, str(error))
    except NotFound as error:
        return _error(404, str(error))
    except RequestTimeout as error:
        return _error(504, str(error))
    except ReloadError as error:
        return _error(502, str(error))
    except CancelledError:
        raise
    except Exception:
        Logger(namespace="p2psipd.admin").failure("{path} failed", path=path)
        return _error(500, "an error in this node, see its log")
    if isinstance(value, Text):
        return 200, value.content_type, value.encode()
    return 200, "application/json", json.dumps(value).encode() + b"\n"


def _body_parameters(request: Any) -> Mapping[str, str]:
    """What a POST gives as a JSON object."""
    body = request.content.read(_LARGEST_BODY) if request.content is not None else b""
    if not body or request.method != b"POST":
        return {}
    try:
        value = json.loads(body)
    except ValueError:
        raise BadRequest("expected a JSON object") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequest("expected a JSON object")
    return {str(name): str(inner) for name, inner in value.items()}


def _error(status: int, message: str) -> tuple[int, str, bytes]:
    return status, "application/json", json.dumps({"error": message}).encode() + b"\n"
