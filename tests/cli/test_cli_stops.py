"""Every verb that takes a while is stopped by a signal: at once, with its exit code, and without rubbish."""

import json
import shutil
import socket
import threading

import pytest
import yaml
from stopped import Moment, command, moments, rubbish
from tiny_folder import write_model, write_rows

EXIT = {15: 143, 2: 130}
SHIPPING = "graft.shipping.export"
# (words, the function in which the signal arrives); {home} is the folder of the fixture.
VERBS = [
    ("plan {home}/recipe.yaml data.max_length=40", "graft.planning.plan:_traced"),
    ("eval {home}/run", "graft.runs.open:load_base"),
    ("eval {home}/run", "graft.runs.score:before_after"),
    ("eval {home}/run --metric exact_match", "graft.generate.generate:complete"),
    ("chat {home}/run --prompt Day", "graft.runs.open:reply"),
    ("chat {home}/run", "graft.cli.chat:Conversation.listen"),
    ("ask {home}/rows.jsonl --adapters {home}/run --out {home}/answers.jsonl",
     "graft.runs.ask_adapters:load_base"),
    ("compare {home}/run {home}/model", "graft.runs.open:reply"),
    ("judge {home}/run {home}/model --by rule:shorter --out {home}/j.jsonl", "graft.runs.open:reply"),
    ("rank {home}/verdicts.jsonl", "graft.evaluate.leaderboard:leaderboard"),
    ("export {home}/run {home}/out", f"{SHIPPING}:_export_model"),
    ("export {home}/run {home}/out", f"{SHIPPING}:certify"),
    ("export {home}/run {home}/out --to gguf", f"{SHIPPING}:_export_model"),
    ("export {home}/run {home}/out --to peft", f"{SHIPPING}:certify"),
    ("merge {home}/run {home}/out", f"{SHIPPING}:_export_model"),
    ("quantize {home}/model {home}/out", "graft.runs.quantise:load"),
    ("quantize {home}/model {home}/out", "graft.runs.quantise:output_folder"),
    ("quantize {home}/model {home}/out --to int4 --data {home}/rows.jsonl",
     "graft.runs.quantise:quantise_calibrated"),
    ("convert {home}/tuned {home}/out --base {home}/model", "graft.combine.extract:difference"),
    ("data show {home}/rows.jsonl --model {home}/model", "graft.runs.look:prepare"),
    ("data convert {home}/pairs.jsonl {home}/out.jsonl --to preference", "graft.data.convert:convert"),
    ("verify {home}/shipped", "graft.shipping.verify:verify"),
    ("demo --folder {home}/demo", "graft.runs.build:load"),
    ("doctor --bench", "graft.kernels.measure:bench"),
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verbs")
    write_model(folder / "model")
    write_rows(folder / "rows.jsonl")
    shutil.copytree(folder / "model", folder / "tuned")
    for who in "ab":
        rows = [{"prompt": f"p{i}", "answer": who * (i + 1)} for i in range(8)]
        (folder / f"{who}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(8)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    settings = {
        "model": str(folder / "model"), "dtype": "fp32", "method": {"name": "lora", "r": 4},
        "data": {"train": str(folder / "rows.jsonl"), "eval": 0.25, "max_length": 48},
        "train": {"max_steps": 4, "batch_size": 4, "micro_batch_size": 2, "lr": 0.05},
        "output": str(folder / "run"),
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    for words in (
        ["train", f"{folder}/recipe.yaml"],
        ["judge", f"{folder}/a.jsonl", f"{folder}/b.jsonl", "--by", "rule:shorter",
         "--out", f"{folder}/verdicts.jsonl"],
        ["export", f"{folder}/run", f"{folder}/shipped"],
    ):  # fmt: skip
        end = command(words, None, folder / "said")
        assert end.code == 0, end.said
    return folder


def contents(place):
    """{name: bytes} of a file, or of the weights and settings of a folder."""
    if place.is_file():
        return {"": place.read_bytes()}
    kept = [
        path for path in place.rglob("*") if path.suffix in (".safetensors", ".gguf") or path.stem == "config"
    ]
    return {str(path.relative_to(place)): path.read_bytes() for path in kept}


@pytest.mark.parametrize("number", range(len(VERBS)), ids=[words.split()[0] for words, _ in VERBS])
def test_a_verb_is_stopped_at_once_and_leaves_nothing_half_written(number, home, tmp_path):
    words, place = VERBS[number]
    moment = moments(place, number, most_s=0.005, inside=True)
    before = {*home.iterdir()}
    words = [word.format(home=home) for word in words.split()]
    end = command(words, moment, tmp_path)
    assert end.code == EXIT[moment.number], end
    assert "graft: stopped by SIG" in end.said and "error" not in end.said
    assert not rubbish(home)
    for early in {*home.iterdir()} - before:  # the signal came after the output was in its place: it is whole
        early.rename(tmp_path / "early")
        assert command(words, None, tmp_path).code == 0
        early.rename(tmp_path / "undisturbed")
        assert contents(tmp_path / "early") == contents(tmp_path / "undisturbed")


def test_a_judge_that_does_not_answer_holds_nobody(home, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:  # it takes connections and says nothing
        port = server.getsockname()[1]
        threading.Thread(target=lambda: server.accept(), daemon=True).start()
        words = ["judge", f"{home}/a.jsonl", f"{home}/b.jsonl", "--out", f"{tmp_path}/v.jsonl"]
        words += ["--by", f"http://127.0.0.1:{port}/v1", "--model", "judge", "--timeout-s", "100"]
        end = command(words, Moment("graft.evaluate.endpoint:Endpoint._once", 1, 0.2), tmp_path)
    assert end.code == 143 and end.seconds < 60
