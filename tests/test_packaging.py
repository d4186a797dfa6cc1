"""What is installed: each way of installing gives both commands, and nothing undeclared is needed."""

from __future__ import annotations

import ast
import configparser
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TWISTD = "from twisted.scripts.twistd import run; run()"


@pytest.fixture(params=["plain", "editable"])
def environment(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A fresh virtual environment into which a copy of the project was installed, plainly or editably.

    The dependencies are lent by the environment that runs the tests (a path entry; its own editable entries
    are not followed), so that nothing is fetched.
    """
    checkout = tmp_path / "checkout"
    ignore = shutil.ignore_patterns("__pycache__", "dropin.cache")
    for name in ("p2psipd", "twisted"):
        shutil.copytree(ROOT / name, checkout / name, ignore=ignore)
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout / name)
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    site = next(venv.glob("lib/python*/site-packages"))
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(venv / "bin" / "python"), "install", "--quiet"]
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--ignore-installed"]
    editable = ["--editable"] if request.param == "editable" else []
    subprocess.run([*pip, *options, *editable, str(checkout)], check=True, capture_output=True, text=True)
    if request.param == "plain":
        shutil.rmtree(checkout)
    return venv


def run(venv: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the environment in a directory that holds no part of the project."""
    return subprocess.run(
        [str(venv / "bin" / command[0]), *command[1:]], cwd=venv, capture_output=True, text=True, timeout=60
    )


def test_installation_gives_both_commands(environment: Path) -> None:
    """`pip install .` and `pip install -e .` in a clean environment each give p2psip and `twistd p2psip`."""
    command = run(environment, "p2psip", "--help")
    assert command.returncode == 0, command.stderr
    assert "registrations" in command.stdout
    where = run(environment, "python", "-c", "import p2psipd; print(p2psipd.__file__)").stdout
    assert str(environment.parent) in where
    daemon = run(environment, "python", "-c", TWISTD, "p2psip", "--help")
    assert daemon.returncode == 0, daemon.stdout + daemon.stderr
    assert "--config" in daemon.stdout
    assert run(environment, "python", "-c", SCHEMA).returncode == 0


SCHEMA = """
from importlib.resources import files
found = [p for p in files("p2psipd.proto.reload").iterdir() if p.name.endswith(".rng")]
raise SystemExit(0 if found else "the schema of the configuration document was not installed")
"""


def _imported() -> dict[str, str]:
    """Top-level modules that the package imports and that are not its own or the standard library's."""
    found: dict[str, str] = {}
    for path in [*ROOT.glob("p2psipd/**/*.py"), *ROOT.glob("twisted/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in names:
                top = name.partition(".")[0]
                if top not in sys.stdlib_module_names and top != "p2psipd":
                    found.setdefault("zope.interface" if top == "zope" else top, str(path.relative_to(ROOT)))
    return found


def _declared() -> set[str]:
    """Names of the run-time dependencies in setup.cfg, in their normal form."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    lines = parser["options"]["install_requires"].split()
    return {re.split(r"[><=~!\[;]", line)[0].lower().replace("_", "-").replace(".", "-") for line in lines}


def test_dependencies_are_declared() -> None:
    """What the package imports is declared as a dependency, and what is declared is imported."""
    providers = packages_distributions()
    needed: dict[str, str] = {"zope-interface": "zope.interface"}
    for module, where in _imported().items():
        for name in providers.get(module, [module]):
            normal = name.lower().replace("_", "-").replace(".", "-")
            if module != "zope.interface" and normal != "p2psipd":
                needed[normal] = f"{module}, imported in {where}"
    undeclared = {name: why for name, why in needed.items() if name not in _declared()}
    assert not undeclared
    # service-identity is what Twisted itself asks for beside pyOpenSSL.
    unused = _declared() - needed.keys() - {"service-identity"}
    assert not unused
