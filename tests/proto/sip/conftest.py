"""Fixtures of the SIP core's tests."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest


@pytest.fixture
def within_10_ms() -> Iterator[None]:
    """The test's own CPU time must stay below 10 ms (three times that is allowed for a cold or busy machine)."""
    began = time.process_time()
    yield
    assert time.process_time() - began < 0.030
