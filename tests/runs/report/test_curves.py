"""Curves of a page: no spike is lost when they are thinned, and what cannot be drawn is left out."""

import json
import math

from graft.runs.report.curves import MOST, Chart, Curve, is_number, smoothed, thinned


def test_a_long_curve_keeps_its_ends_and_its_spikes():
    y = [math.sin(i / 500) for i in range(10_000)]
    y[4321], y[8765] = 50.0, -50.0
    x, kept = thinned(range(10_000), y)
    assert len(x) <= MOST and (x[0], x[-1]) == (0, 9_999) and x == sorted(set(x))
    assert (4321, 50.0) in zip(x, kept, strict=True) and (8765, -50.0) in zip(x, kept, strict=True)
    assert thinned([1, 2], [3.0, 4.0]) == ([1, 2], [3.0, 4.0])


def test_smoothing_is_the_mean_of_the_neighbours():
    values = [float((7 * i) % 13) for i in range(200)]
    reach = len(values) // 40
    for i, value in enumerate(smoothed(values)):
        near = values[max(0, i - reach) : i + reach + 1]
        assert math.isclose(value, sum(near) / len(near))


def test_a_chart_is_json_that_a_browser_reads():
    chart = Chart("Loss", [Curve("a", [1, 2], [1 / 3, 2e-5]), Curve("b", [1], [1], right=True, colour=0)])
    told = json.loads(json.dumps(chart.json(), allow_nan=False))
    assert told["shared"] and told["curves"][0]["y"] == [0.333333, 2e-05]
    assert [curve["colour"] for curve in told["curves"]] == [0, 0]
    assert not Chart("Calibration", [], "probability").json()["shared"]


def test_what_is_no_number_is_not_drawn():
    drawn = [value for value in (1, 2.5, True, None, "3", math.nan, math.inf, [1]) if is_number(value)]
    assert drawn == [1, 2.5]
