"""Which numbers of a run stand on which chart of its report."""

from graft.runs.charts import calibration, charts


def by_title(metrics, timing=()):
    return {chart.title: chart for chart in charts(metrics, timing)}


def names(chart):
    """Return the names of the curves on the left axis, and those on the right."""
    right = [trace["name"] for trace in chart.traces if trace.get("yaxis") == "y2"]
    return [trace["name"] for trace in chart.traces if trace["name"] not in right], right


def test_a_run_has_the_charts_of_what_it_recorded_and_no_others():
    metrics = [{"step": 1, "loss": 2.0, "lr": 1e-4}, {"step": 2, "loss": 1.5}, {"step": 2, "eval_loss": 1.25}]
    found = by_title(metrics, [{"step": 1, "tokens_per_s": 5.0}, {"resumed": 1}])
    assert list(found) == ["Loss", "Learning rate", "Tokens per second"]
    learnt, held_out = found["Loss"].traces
    assert (learnt["x"], learnt["y"]) == ((1, 2), (2.0, 1.5))
    assert (held_out["name"], held_out["x"], held_out["y"]) == ("eval loss", (2,), (1.25,))
    assert "yaxis2" not in found["Loss"].layout()


def test_of_a_model_that_learns_from_its_own_answers_reward_and_judge_stand_together():
    step = {
        "step": 1, "loss": 0.1, "policy_loss": 0.1, "reward": 0.5, "reward_letters": 0.5, "reward_short": 0.0,
        "reward_deviation": 0.3, "kl": 0.0, "beta": 0.05, "length": 12.0, "ended": 0.9,
    }  # fmt: skip
    evaluation = {"step": 1, "eval_loss": -0.4, "eval_reward": 0.4, "eval_judge": 7.0, "eval_kl": 0.1}
    found = by_title([step, evaluation | {"eval_reward_letters": 0.4}])
    assert names(found["Reward"]) == (["reward", "eval reward"], ["eval judge"])
    assert names(found["Single rewards"]) == (["reward letters", "reward short", "eval reward letters"], [])
    assert names(found["Divergence from the reference"]) == (["kl", "eval kl"], ["beta"])
    assert names(found["Length of answers"]) == (["length"], ["ended"])
    assert names(found["Loss"]) == (["loss", "policy loss"], []), "minus the reward is another loss"
    assert found["Reward"].layout()["yaxis2"]["title"]["text"] == "eval judge"


def test_rewards_that_a_loss_implies_are_no_functions_rewards():
    step = {"step": 1, "loss": 0.1, "reward_chosen": 0.2, "reward_rejected": 0.1, "margin": 0.1}
    found = by_title([step])
    assert names(found["Rewards of compared answers"]) == (["reward chosen", "reward rejected", "margin"], [])
    assert "Single rewards" not in found and "Reward" not in found
    assert names(by_title([step | {"reward": 1.0, "reward_letters": 1.0}])["Single rewards"]) == (
        ["reward letters"],
        [],
    )


def test_numbers_of_the_right_axis_alone_stand_on_the_left():
    found = by_title([{"step": 1, "clip_fraction": 0.1}])["Ratio of probabilities"]
    assert names(found) == (["clip fraction"], []) and not found.right


def test_the_calibration_of_a_reward_model_is_drawn_beside_the_diagonal():
    told, ideal = calibration([(0.6, 0.5, 10), (0.9, 1.0, 4)]).traces
    assert told["y"] == (0.5, 1.0) and told["text"] == ["10 pairs", "4 pairs"]
    assert ideal["x"] == ideal["y"] == [0.5, 1]
