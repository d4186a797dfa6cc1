"""Fixtures of the SIP core's tests."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator

import pytest


@pytest.fixture
def within_10_ms() -> Iterator[None]:
    """The test's own CPU time must stay below 10 ms (three times that is allowed for a cold or busy machine)."""
    gc.disable()
    began = time.process_time()
    yield
    spent = time.process_time() - began
    gc.enable()
    assert spent < 0.030
