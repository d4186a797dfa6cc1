"""Starting benchmark processes and talking to them: a JSON object a line, each way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any


class HostProcess:
    """One process that obeys commands (see `overlay_host`)."""

    def __init__(self, module: str, spec: dict[str, Any], core: int | None = None) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
            json.dump(spec, file)
        self._spec = file.name
        command = [sys.executable, "-m", module, file.name]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if core is not None:
            os.sched_setaffinity(self._process.pid, {core % (os.cpu_count() or 1)})

    def ask(self, do: str, **arguments: Any) -> Any:
        """Send one command and wait for its answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{do}: the process ended")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{do}: {answer['error']}")
        return answer["ok"]

    def stop(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.unlink(self._spec)


def ask_all(hosts: list[HostProcess], do: str, arguments: list[dict[str, Any]] | None = None) -> list[Any]:
    """The same command to all hosts at once, each with its own arguments."""
    each = arguments or [{}] * len(hosts)
    with ThreadPoolExecutor(len(hosts)) as pool:
        return list(pool.map(lambda pair: pair[0].ask(do, **pair[1]), zip(hosts, each, strict=True)))
