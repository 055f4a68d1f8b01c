"""Which numbers of a run stand on which chart of its report."""

from graft.runs.report.charts import calibration, charts, lengths


def by_title(metrics, timing=()):
    return {chart.title: chart for chart in charts(metrics, timing)}


def names(chart):
    """Return the names of the curves on the left axis, and those on the right."""
    return tuple([curve.name for curve in chart.curves if curve.right == right] for right in (False, True))


def test_a_run_has_the_charts_of_what_it_recorded_and_no_others():
    metrics = [{"step": 1, "loss": 2.0, "lr": 1e-4}, {"step": 2, "loss": 1.5}, {"step": 2, "eval_loss": 1.25}]
    found = by_title(metrics, [{"step": 1, "tokens_per_s": 5.0, "peak_mb": 7.0}, {"resumed": 1}])
    assert list(found) == ["Loss", "Learning rate", "Speed and memory"]
    learnt, held_out = found["Loss"].curves
    assert (learnt.x, learnt.y, learnt.style) == ([1, 2], [2.0, 1.5], "line")
    assert (held_out.name, held_out.x, held_out.y) == ("loss, held-out rows", [2], [1.25])
    assert names(found["Loss"])[1] == []
    assert names(found["Speed and memory"]) == (["tokens per second"], ["memory peak, MiB"])


def test_the_speed_counts_what_the_stage_counts():
    (chart,) = charts([], [{"step": 1, "tokens_per_s": 5.0}], "pairs")
    assert names(chart) == (["pairs per second"], [])


def test_a_noisy_curve_has_its_trend_in_the_same_colour_beside_it():
    metrics = [{"step": i, "loss": float(i % 2)} for i in range(1, 101)]
    each, trend = by_title([*metrics, {"step": 100, "eval_loss": 0.5}])["Loss"].curves[:2]
    assert (each.name, each.style, trend.name, trend.style) == ("loss, each step", "faint", "loss", "line")
    assert each.colour == trend.colour and each.y[:3] == [1.0, 0.0, 1.0]
    assert max(trend.y[5:-5]) - min(trend.y[5:-5]) < 0.5, "smoother than the steps"


def test_of_a_step_that_was_repeated_the_last_number_counts():
    timing = [{"step": i, "tokens_per_s": 1.0} for i in (1, 2, 3)]
    timing += [{"resumed": 1}, {"step": 2, "tokens_per_s": 9.0}, {"step": 3, "tokens_per_s": float("nan")}]
    (speed,) = by_title([], timing)["Speed and memory"].curves
    assert (speed.x, speed.y) == ([1, 2, 3], [1.0, 9.0, 1.0])


def test_of_a_model_that_learns_from_its_own_answers_reward_and_judge_stand_together():
    step = {
        "step": 1, "loss": 0.1, "policy_loss": 0.1, "reward": 0.5, "reward_letters": 0.5, "reward_short": 0.0,
        "reward_deviation": 0.3, "kl": 0.0, "beta": 0.05, "length": 12.0, "ended": 0.9,
    }  # fmt: skip
    evaluation = {"step": 1, "eval_loss": -0.4, "eval_reward": 0.4, "eval_judge": 7.0, "eval_kl": 0.1}
    found = by_title([step, evaluation | {"eval_reward_letters": 0.4}])
    held = ", held-out rows"
    assert names(found["Reward"]) == (["reward", f"reward{held}"], [f"judge{held}"])
    assert names(found["Single rewards"]) == (
        ["reward letters", "reward short", f"reward letters{held}"],
        [],
    )
    assert names(found["Divergence from the reference"]) == (["KL", f"KL{held}"], ["beta"])
    assert names(found["Length of answers"]) == (["length"], ["ended"])
    assert names(found["Loss"]) == (["loss", "policy loss"], []), "minus the reward is another loss"
    assert next(iter(found)) == "Reward", "what matters most comes first"


def test_rewards_that_a_loss_implies_are_no_functions_rewards():
    step = {"step": 1, "loss": 0.1, "reward_chosen": 0.2, "reward_rejected": 0.1, "margin": 0.1}
    found = by_title([step])
    assert names(found["Rewards of compared answers"]) == (["reward chosen", "reward rejected", "margin"], [])
    assert "Single rewards" not in found and "Reward" not in found
    single = names(by_title([step | {"reward": 1.0, "reward_letters": 1.0}])["Single rewards"])
    assert single == (["reward letters"], [])


def test_numbers_of_the_right_axis_alone_stand_on_the_left():
    assert names(by_title([{"step": 1, "clip_fraction": 0.1}])["Ratio of probabilities"]) == (
        ["clip fraction"],
        [],
    )


def test_the_calibration_of_a_reward_model_is_drawn_beside_the_diagonal():
    told, ideal = calibration([(0.6, 0.5, 10), (0.9, 1.0, 4)]).curves
    assert (told.x, told.y) == ((0.6, 0.9), (0.5, 1.0))
    assert list(ideal.x) == list(ideal.y) == [0.5, 1] and ideal.style == "dashed"


def test_lengths_are_bars():
    (bars,) = lengths([[8, 3], [16, 0], [24, 5]]).curves
    assert (list(bars.x), list(bars.y), bars.style) == ([8, 16, 24], [3, 0, 5], "bars")
