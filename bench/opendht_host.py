"""Nodes of the PyPI package `opendht` (C++ with Python bindings), values over UDP; signed with RSA if asked."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import opendht

from bench.asyncio_host import AsyncioHost, serve


class OpenDhtHost(AsyncioHost):
    """As many runners as the spec says, on consecutive ports; `signed` makes each put a putSigned."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__(spec)
        self.nodes: list[opendht.DhtRunner] = []

    async def do_start(self) -> float:
        """Start the runners and bootstrap them through the first."""
        began = time.perf_counter()
        for port in self.spec["ports"]:
            node = opendht.DhtRunner()
            if self.spec["signed"]:
                node.run(id=opendht.Identity.generate("bench"), port=port)
            else:
                node.run(port=port)
            if port != self.spec["first"]:
                node.bootstrap("127.0.0.1", str(self.spec["first"]))
            self.nodes.append(node)
        await asyncio.sleep(3)
        return time.perf_counter() - began

    async def put(self, number: int, name: str, size: int) -> None:
        """Store, waiting for the storing nodes' confirmation."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[bool] = loop.create_future()
        node = self.nodes[number % len(self.nodes)]
        put = node.putSigned if self.spec["signed"] else node.put

        def finished(ok: bool, _: Any) -> None:
            loop.call_soon_threadsafe(lambda: done.done() or done.set_result(ok))

        put(opendht.InfoHash.get(name), opendht.Value(os.urandom(size)), finished)
        await done

    async def get(self, number: int, name: str) -> bool:
        """The first value that comes back."""
        loop = asyncio.get_running_loop()
        found: asyncio.Future[bool] = loop.create_future()

        def settle(ok: bool) -> None:
            loop.call_soon_threadsafe(lambda: found.done() or found.set_result(ok))

        def value(_: Any) -> bool:
            settle(True)
            return False

        node = self.nodes[(number * 7 + 3) % len(self.nodes)]
        node.get(opendht.InfoHash.get(name), value, lambda ok, _: settle(False))
        return await found


if __name__ == "__main__":
    asyncio.run(serve(OpenDhtHost))
