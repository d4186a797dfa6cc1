"""The walls between the rooms: that the contracts hold is checked by `make lint`, that they bite is checked
here.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PLANTED = {
    "proto/sip/planted.py": ("import time\n", "roll no dice"),
    "proto/reload/planted.py": ("from p2psipd.proto.sip import uri\n", "cores do not know each other"),
    "proto/peering/planted.py": ("from p2psipd.proto.reload import ids\n", "knows no overlay"),
    "net/planted.py": ("from p2psipd.services import sip\n", "point down only"),
    "services/planted.py": ("from p2psipd.services import sip\n", "meet only in app.py"),
    "sim/planted.py": ("from twisted.internet import task\n", "virtual time alone"),
}


def test_planted_imports_break_the_contracts(tmp_path: Path) -> None:
    """An import through each wall is found by the contract that stands for that wall."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "p2psipd", tmp_path / "p2psipd", ignore=ignore)
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    for name, (code, _contract) in PLANTED.items():
        (tmp_path / "p2psipd" / name).write_text(code)
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    linted = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert linted.returncode == 1, linted.stdout + linted.stderr
    broken = [line for line in linted.stdout.splitlines() if "BROKEN" in line]
    for _code, contract in PLANTED.values():
        assert any(contract in line for line in broken), (contract, linted.stdout)


@pytest.mark.parametrize(
    "code",
    [
        "import os\nkey = os.urandom(16)\n",
        "import datetime\nnow = datetime.datetime.now()\n",
        "from datetime import datetime\nnow = datetime.now()\n",
    ],
)
def test_planted_clock_or_dice_in_a_core(code: str) -> None:
    """A core that fetches time or randomness through a module that it may import is found by ruff."""
    command = [sys.executable, "-m", "ruff", "check", "--select", "TID251", "--stdin-filename"]
    found = subprocess.run(
        [*command, "p2psipd/proto/planted.py", "-"], input=code, cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 1
    assert "TID251" in found.stdout


@pytest.mark.parametrize(
    "module", ["p2psipd.cli.main", "p2psipd.cli.node", "p2psipd.cli.lab", "p2psipd.control"]
)
def test_verbs_that_ask_a_node_start_without_twisted(module: str) -> None:
    """A verb that only asks a running node imports neither Twisted nor the application."""
    heavy = ("twisted", "p2psipd.app", "OpenSSL")
    code = f"import sys, {module}; print(*(m for m in {heavy} if m in sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.split() == []
