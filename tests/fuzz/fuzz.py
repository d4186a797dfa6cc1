"""Fuzzes one target with coverage: `python tests/fuzz/fuzz.py TARGET [libFuzzer options] [corpus directories]`.

`make fuzz` runs all of them; new finds go to the first directory.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent))

with atheris.instrument_imports(include=["p2psipd.proto.sip"]):
    from targets import TARGETS


def main() -> None:
    """Run until libFuzzer has had enough; any exception ends the process."""
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
