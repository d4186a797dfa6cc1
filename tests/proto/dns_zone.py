"""A DNS of the test's own: what it publishes, what fails in it, and what it was asked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Coroutine
from typing import Any, TypeVar

from p2psipd.proto.dns import NO_RECORD, A, Aaaa, Answer, Naptr, Other, Record, Srv, Status, Txt

T = TypeVar("T")


class Zone:
    """Answers look-ups from records given as text: ``Zone({"b.test NAPTR": ['10 10 "s" ...'], ...})``.

    The text of a value is that of a zone file without escapes; "SERVFAIL" makes the look-up fail. `asked` lists
    every look-up as "name TYPE".
    """

    def __init__(self, records: dict[str, list[str]] | None = None) -> None:
        self.records = dict(records or {})
        self.asked: list[str] = []

    def ask(self, name: str, type: str) -> Awaitable[Answer]:
        """One look-up; recorded at once."""
        key = f"{name} {type}"
        self.asked.append(key)
        return self._answer(key, type)

    async def _answer(self, key: str, type: str) -> Answer:
        found = self.records.get(key)
        if found is None:
            return NO_RECORD
        if found == ["SERVFAIL"]:
            return Answer(Status.FAILED, reason="SERVFAIL")
        return Answer(Status.FOUND, tuple([_record(type, text) for text in found]), 60.0)


def _record(type: str, text: str) -> Record:
    words = text.split()
    if type == "NAPTR":
        order, preference, flags, service, regexp, replacement = text.split(" ", 5)
        return Naptr(int(order), int(preference), flags.strip('"'), service.strip('"'), regexp.strip('"'), replacement)
    if type == "SRV":
        return Srv(int(words[0]), int(words[1]), int(words[2]), words[3])
    if type == "TXT":
        return Txt((text,))
    if type.startswith("TYPE"):
        return Other(type, bytes.fromhex(text))
    return A(text) if type == "A" else Aaaa(text)


def finished(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that never has to wait."""
    try:
        work.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("it waits for something")


def all_of(items: AsyncIterator[T]) -> list[T]:
    """Everything that an async iterator gives that never has to wait."""

    async def collect() -> list[T]:
        return [item async for item in items]

    return finished(collect())
