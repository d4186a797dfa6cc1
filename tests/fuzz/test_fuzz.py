"""Coverage-guided fuzzing of the SIP core with atheris: all targets at once, each from its kept corpus.

Ten seconds each, sixty in CI (`CI` set), or P2PSIPD_FUZZ_SECONDS. What libFuzzer finds is printed, to be put into
`corpus/TARGET` together with the fix.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SEEDS = {
    "parser": sorted((HERE.parent / "vectors" / "sip").glob("rfc*")),
    "stream": [HERE.parent / "vectors" / "sip" / "rfc4475"],
    "transaction": [],
    "digest": [],
}
SECONDS = int(os.environ.get("P2PSIPD_FUZZ_SECONDS") or ("60" if os.environ.get("CI") else "10"))


def _kept(name: str) -> list[Path]:
    return sorted((HERE / "corpus" / name).iterdir())


@pytest.mark.parametrize("name", SEEDS)
def test_kept_corpus(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every input that was worth keeping passes, without instrumentation."""
    monkeypatch.syspath_prepend(str(HERE))
    from targets import TARGETS  # type: ignore[import-not-found]

    files = _kept(name)
    assert len(files) >= 20 and sum(path.stat().st_size for path in files) < 100_000
    for path in files:
        TARGETS[name](path.read_bytes())


def test_fuzzing(tmp_path: Path) -> None:
    """No target raises anything but the package's own error, hangs, or breaks one of its rules."""
    running: dict[str, tuple[subprocess.Popen[bytes], Path]] = {}
    try:
        for name, seeds in SEEDS.items():
            found, log = tmp_path / name, tmp_path / f"{name}.log"
            found.mkdir()
            command = [
                sys.executable, str(HERE / "fuzz.py"), name, f"-max_total_time={SECONDS}", "-timeout=10",
                "-max_len=8192", f"-dict={HERE / 'sip.dict'}", f"-artifact_prefix={tmp_path / name}-",
                str(found), str(HERE / "corpus" / name), *map(str, seeds),
            ]  # fmt: skip
            with log.open("wb") as sink:
                running[name] = subprocess.Popen(command, cwd=HERE.parents[1], stdout=sink, stderr=sink), log
        for name, (process, log) in running.items():
            code = process.wait(timeout=SECONDS + 120)
            text = log.read_text(errors="replace")
            assert code == 0 and "Done " in text, f"{name}: {text[-4000:]}"
    finally:
        for process, _ in running.values():
            if process.poll() is None:
                process.kill()
                process.wait()
