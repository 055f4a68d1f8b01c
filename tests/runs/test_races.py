"""Two commands that start at once into one folder: one wins, whole, and the other says who that is."""

import threading

import pytest
import yaml
from racing import race
from stopped import command, rubbish
from tiny_folder import write_model, write_rows

import graft
from graft.errors import CheckpointError
from graft.recipe import read
from graft.training.observer import Observer

RATES = (1e-3, 2e-3)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("races")
    write_model(folder / "model")
    write_rows(folder / "rows.jsonl")
    settings = {
        "model": str(folder / "model"), "dtype": "fp32", "method": {"name": "lora", "r": 4},
        "data": {"train": str(folder / "rows.jsonl"), "max_length": 48},
        "train": {"max_steps": 4, "batch_size": 4, "micro_batch_size": 2},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    for rate in RATES:
        end = command(train(folder, folder / f"alone-{rate}", rate), None, folder / "said")
        assert end.code == 0, end.said
    return folder


def train(home, output, rate):
    return ["train", str(home / "recipe.yaml"), f"output={output}", f"train.lr={rate}"]


def adapter(run):
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("number", range(3))
def test_of_two_runs_with_other_settings_one_wins_and_its_recipe_lies_beside_its_adapter(
    number, home, tmp_path
):
    run = tmp_path / "run"
    racers = race([train(home, run, rate) for rate in RATES], tmp_path / "said")
    assert sorted(racer.code for racer in racers) == [0, 1], racers
    won = next(rate for rate, racer in zip(RATES, racers, strict=True) if racer.code == 0)
    assert all(racer.named and "another output" in racer.said for racer in racers if racer.code)
    assert read(run).train.lr == won and adapter(run) == adapter(home / f"alone-{won}")


def test_of_two_exports_into_one_folder_one_wins_whole(home, tmp_path):
    words = ["export", str(home / f"alone-{RATES[0]}"), str(tmp_path / "out")]
    racers = race([words, words], tmp_path / "said")
    assert sorted(racer.code for racer in racers) == [0, 2], racers
    loser = next(racer for racer in racers if racer.code)
    assert loser.named or "exists" in loser.said
    assert not rubbish(tmp_path)
    assert command(["verify", str(tmp_path / "out")], None, tmp_path / "said").code == 0


def test_two_threads_of_one_process_and_a_call_within_a_call_are_refused(home, tmp_path):
    chosen = read(home / "recipe.yaml", [f"output={tmp_path}/run"])
    refused = []

    def second():
        with pytest.raises(CheckpointError) as error:
            graft.run(chosen)
        refused.append(str(error.value))

    class Curious(Observer):
        def note(self, text):
            pass

        def start(self, plan):
            second()
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()

    graft.run(chosen, observer=Curious())
    assert len(refused) == 2 and all("in use by process" in text for text in refused)


def test_a_run_can_be_asked_while_the_same_command_works_in_its_folder(home, tmp_path):
    from graft.runs.open import open_model

    run, answers = tmp_path / "run", []
    command(train(home, run, RATES[0]), None, tmp_path / "said")

    class Curious(Observer):
        def note(self, text):
            pass

        def data(self, report):
            answers.extend(open_model(str(run)).ask(["Day 1."], max_new_tokens=2))

    graft.run(read(run), observer=Curious())
    assert len(answers) == 1
