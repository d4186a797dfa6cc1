"""The latency models: the figures that results quote."""

from __future__ import annotations

from random import Random

import pytest

from p2psipd.sim.latency import MEDIAN_ROUND_TRIP, King, Lan, latency_model


def round_trips(seed: int) -> list[float]:
    """Round trips between random pairs of 400 King-like nodes, sorted."""
    model, random = King(), Random(seed)
    places = [model.place(random) for _ in range(400)]
    return sorted(2 * model.one_way(*random.sample(places, 2)) for _ in range(5000))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_median_round_trip_is_139_ms(seed: int) -> None:
    """Whatever the seed of a world, its median round trip is near 139 ms, with near and far pairs."""
    trips = round_trips(seed)
    assert trips[2500] == pytest.approx(MEDIAN_ROUND_TRIP, rel=0.1)
    assert trips[50] < 0.04
    assert trips[4950] > 0.25


def test_the_model_is_the_same_on_every_run() -> None:
    """Two models from one seed agree to the last bit."""
    assert round_trips(7) == round_trips(7)


def test_delay_is_symmetric_and_never_zero() -> None:
    """There and back take the same time, and even neighbours are some microseconds apart."""
    model, random = King(), Random(1)
    for _ in range(200):
        a, b = model.place(random), model.place(random)
        assert model.one_way(a, b) == model.one_way(b, a) > 0


def test_names() -> None:
    """Models are known by name, and others refused."""
    assert latency_model("lan").one_way(Lan().place(Random(1)), Lan().place(Random(2))) == 0.0005
    assert isinstance(latency_model("king"), King)
    with pytest.raises(ValueError, match="king or lan"):
        latency_model("moon")
