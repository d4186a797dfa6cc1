"""Nodes of the PyPI package `kademlia` (bmuller), k=20, unsigned values over UDP."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Any

from kademlia.network import Server

from bench.asyncio_host import AsyncioHost, serve


class KademliaHost(AsyncioHost):
    """As many servers as the spec says, on consecutive ports."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__(spec)
        self.nodes: list[Server] = []

    async def do_start(self) -> float:
        """Start and bootstrap each server through the first."""
        began = time.perf_counter()
        for port in self.spec["ports"]:
            server = Server()
            await server.listen(port, interface="127.0.0.1")
            if port != self.spec["first"]:
                await server.bootstrap([("127.0.0.1", self.spec["first"])])
            self.nodes.append(server)
        return time.perf_counter() - began

    async def put(self, number: int, name: str, size: int) -> None:
        """Store on the k nearest."""
        await self.nodes[number % len(self.nodes)].set(name, os.urandom(size))

    async def get(self, number: int, name: str) -> bool:
        """Find the value."""
        return await self.nodes[(number * 7 + 3) % len(self.nodes)].get(name) is not None


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    asyncio.run(serve(KademliaHost))
