"""The client's side of a node's control socket: HTTP over a Unix socket, with the standard library alone.

Used by the verbs of `p2psip` that talk to a running node and by the lab. The resources are those of
`p2psipd.services.admin`; every answer is one JSON value.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import struct
from typing import Any
from urllib.parse import urlencode


class ControlUnreachable(Exception):
    """Nobody answers on the control socket; the message names the socket and why."""


class ControlRefused(Exception):
    """The node answered with an error: `status` (an HTTP status code) and a message for people."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _UnixConnection(http.client.HTTPConnection):
    """An HTTP connection over a Unix stream socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Open the socket (called by http.client)."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Control:
    """A node's control socket at `path`; each call is one request on its own connection."""

    def __init__(self, path: str | os.PathLike[str], timeout: float = 15.0) -> None:
        self.path = os.fspath(path)
        self.timeout = timeout

    def get(self, resource: str, **parameters: str | int | float | None) -> Any:
        """The JSON value of `GET resource?parameters` (parameters that are None are left out).

        Raises ControlUnreachable, or ControlRefused for a status of 400 and above.
        """
        query = urlencode({name: value for name, value in parameters.items() if value is not None})
        return self._request("GET", resource + (f"?{query}" if query else ""), None)

    def post(self, resource: str, body: Any = None) -> Any:
        """The JSON answer to `POST resource` with `body` as JSON. Raises as `get` does."""
        return self._request("POST", resource, body)

    def listener(self) -> int:
        """The process that listens on the socket, whether it answers or not. Raises ControlUnreachable."""
        credentials = struct.Struct("3i")  # struct ucred: pid, uid, gid
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(self.timeout)
                connection.connect(self.path)
                octets = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
        except OSError as error:
            raise ControlUnreachable(f"no node answers at {self.path}: {error.strerror or error}") from error
        pid: int = credentials.unpack(octets)[0]
        return pid

    def _request(self, method: str, target: str, body: Any) -> Any:
        connection = _UnixConnection(self.path, self.timeout)
        try:
            octets = None if body is None else json.dumps(body).encode()
            headers = {"Content-Type": "application/json"} if octets is not None else {}
            connection.request(method, target, octets, headers)
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise ControlUnreachable(f"no node answers at {self.path}: {reason}") from error
        finally:
            connection.close()
        try:
            value = json.loads(content) if content else None
        except ValueError:
            value = content.decode("utf-8", "replace").strip()
        if response.status >= 400:
            message = value.get("error") if isinstance(value, dict) else value
            raise ControlRefused(response.status, str(message or response.reason))
        return value
