"""How far apart simulated nodes are.

King-like model (`king`). The King data set measured round trips between DNS servers all over the Internet;
overlay papers have used it, or its shape, ever since. This generator makes its two traits from a seed,
without the data:

- every node has a place on a plane, and distance on the plane is propagation delay. Places are drawn around
five
  centres of unequal weight (a population lives on continents), so that near pairs and far pairs both abound;
- every node has an access delay of its own, exponentially distributed, that each of its round trips pays
twice (a few
  nodes sit behind slow lines; this gives the long tail, and the violations of the triangle inequality that a
  plane alone does not have).

The unit is then chosen so that the median round trip over 20,000 random pairs is 139 ms; a fifth of that
median is access delay. Uniform model (`lan`): every round trip is 1 ms, for tests that count rather than
time.
"""

from __future__ import annotations

from math import hypot
from random import Random
from typing import Final, NamedTuple, Protocol

MEDIAN_ROUND_TRIP: Final = 0.139

_CENTRES: Final = ((0.0, 0.0, 0.35), (1.0, 0.1, 0.30), (1.9, 0.0, 0.20), (0.4, -0.9, 0.08), (1.9, -1.0, 0.07))
"""Places and weights: roughly North America, Europe, East Asia, South America, Oceania, in units of an
ocean."""
_SPREAD: Final = 0.22
_ACCESS_MEAN: Final = 0.075
_PAIRS: Final = 20_000
_CALIBRATION_SEED: Final = 6940


class Place(NamedTuple):
    """Where one node is: plane coordinates and one-way access delay, all in the model's units."""

    x: float
    y: float
    access: float


class LatencyModel(Protocol):
    """Gives nodes their places, and pairs of places their one-way delay."""

    @property
    def name(self) -> str:
        """What results quote."""
        ...

    def place(self, random: Random) -> Place:
        """The place of a new node."""
        ...

    def one_way(self, a: Place, b: Place) -> float:
        """Seconds from `a` to `b`, the same in both directions."""
        ...


class King:
    """The King-like model; see the module's text."""

    name = "king-like: 5 centres on a plane, exponential access delay, median round trip 139 ms"

    def __init__(self, median: float = MEDIAN_ROUND_TRIP) -> None:
        self._unit = 1.0
        random = Random(_CALIBRATION_SEED)
        places = [self.place(random) for _ in range(2000)]
        pairs = sorted(2 * self.one_way(random.choice(places), random.choice(places)) for _ in range(_PAIRS))
        self._unit = median / pairs[_PAIRS // 2]

    def place(self, random: Random) -> Place:
        """A place near one of the centres."""
        ((x, y, _),) = random.choices(_CENTRES, weights=[centre[2] for centre in _CENTRES])
        return Place(x + random.gauss(0, _SPREAD), y + random.gauss(0, _SPREAD), random.expovariate(1 / _ACCESS_MEAN))

    def one_way(self, a: Place, b: Place) -> float:
        """Propagation, and the access delay of both ends."""
        return (hypot(a.x - b.x, a.y - b.y) + (a.access + b.access)) * self._unit


class Lan:
    """Every round trip is the same."""

    def __init__(self, round_trip: float = 0.001) -> None:
        self.name = f"lan: every round trip is {round_trip * 1000:g} ms"
        self._one_way = round_trip / 2

    def place(self, random: Random) -> Place:
        """One place for all."""
        return Place(0.0, 0.0, 0.0)

    def one_way(self, a: Place, b: Place) -> float:
        """Half the round trip."""
        return self._one_way


def latency_model(name: str) -> LatencyModel:
    """The model called `king` or `lan`; ValueError for another name."""
    if name == "king":
        return King()
    if name == "lan":
        return Lan()
    raise ValueError(f"a latency model is king or lan, not {name!r}")
