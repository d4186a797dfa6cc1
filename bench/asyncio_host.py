"""The command loop of the hosts that run other implementations (see `overlay_host` for the commands)."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from typing import Any


class AsyncioHost:
    """A process that obeys `put`, `get`, `start`, `usage`; subclasses say how."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec

    async def do_start(self) -> float:
        """Start the nodes; seconds it took."""
        raise NotImplementedError("abstract")

    async def put(self, number: int, name: str, size: int) -> None:
        """Store one value."""
        raise NotImplementedError("abstract")

    async def get(self, number: int, name: str) -> bool:
        """Fetch one value; whether it was found."""
        raise NotImplementedError("abstract")

    async def do_usage(self) -> dict[str, float]:
        """CPU seconds so far and resident octets."""
        with open("/proc/self/statm") as statm:
            pages = int(statm.read().split()[1])
        return {"cpu": time.process_time(), "rss": pages * resource.getpagesize()}

    async def _each(self, names: list[str], concurrency: int, one: Any) -> tuple[list[float], int]:
        times: list[float] = []
        failed = 0
        queue = list(enumerate(names))

        async def worker() -> None:
            nonlocal failed
            while queue:
                number, name = queue.pop()
                began = time.perf_counter()
                found = await one(number, name)
                times.append((time.perf_counter() - began) * 1e3)
                failed += found is False

        await asyncio.gather(*(worker() for _ in range(concurrency)))
        return times, failed

    async def do_put(self, names: list[str], size: int, concurrency: int) -> list[float]:
        """Milliseconds of each put."""
        return (await self._each(names, concurrency, lambda n, name: self.put(n, name, size)))[0]

    async def do_get(self, names: list[str], concurrency: int) -> dict[str, Any]:
        """Milliseconds of each get, and how many found nothing."""
        times, failed = await self._each(names, concurrency, self.get)
        return {"times": times, "failed": failed}


async def serve(make: type[AsyncioHost]) -> None:
    """Obey standard input until it ends."""
    with open(sys.argv[1]) as file:
        host = make(json.load(file))
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        try:
            answer = {"ok": await getattr(host, "do_" + command.pop("do"))(**command)}
        except Exception as error:
            answer = {"error": repr(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
