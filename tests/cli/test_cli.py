"""The command line answers at once, says in lines what is wrong, and every command accepts a run's folder."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from tiny_folder import rows, write_model, write_rows

import graft
from graft.cli import app, call
from graft.cli.progress import Progress
from graft.cli.words import separated
from graft.core.cards import cards, pages
from graft.kernels import measure
from graft.kernels.measure import Product, Profile
from graft.recipe import read

COMMANDS = typer.main.get_command(app).commands
PARTS = [f"{verb} {part}" for verb, command in COMMANDS.items() for part in getattr(command, "commands", ())]
ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "rich")  # typer itself reads options by pydantic


def training(folder, output, changes):
    """The words of `graft train` on the tiny model."""
    named = {"--model": "model", "--data": "rows.jsonl", "--output": output}
    return [
        "train",
        *(word for key, name in named.items() for word in (key, str(folder / name))),
        *changes.split(),
    ]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model, rows, and a finished run."""
    folder = tmp_path_factory.mktemp("cli")
    write_model(folder / "model")
    write_rows(folder / "rows.jsonl")
    changes = "dtype=fp32 method.r=2 train.max_steps=2 train.batch_size=4 data.eval=0.25 --train.lr 1e-2"
    words = training(folder, "run", changes)
    assert call(words) == 0
    return folder


def modules_after(code):
    """Names of the heavy modules that a fresh process has after this code."""
    check = f"{code}\nimport sys\nprint([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    return done.stderr.splitlines()[-1]


def test_importing_graft_imports_nothing_heavy():
    names = (
        "import graft; graft.__version__; dir(graft); graft.__all__; "
        "import sys; assert 'pydantic' not in sys.modules"
    )
    assert modules_after(names) == "[]"


@pytest.mark.parametrize(
    "words",
    [["--help"], ["train", "--help"], ["verify", "--help"], ["methods"], ["methods", "lora", "--json"]],
)
def test_help_and_methods_import_nothing_heavy(words):
    assert modules_after(f"from graft.cli import call\ncall({words!r})") == "[]"


def test_recipe_and_row_errors_import_no_torch(tmp_path):
    write_rows(tmp_path / "bad.jsonl", [{"prompt": "x", "completion": ""}])
    data = f"--data={tmp_path / 'bad.jsonl'}"
    for words in (
        ["train", "train.lerning_rate=1"],
        ["train", "--model", "m", data],
        ["verify", str(tmp_path)],
    ):
        assert "torch" not in modules_after(f"from graft.cli import call\nassert call({words!r})")


def test_every_file_with_a_verb_is_in_the_table():
    files = (ROOT / "src" / "graft" / "cli").glob("*.py")
    assert {path.stem for path in files if "def add_to(" in path.read_text()} == set(COMMANDS)


@pytest.mark.parametrize("verb", ["", *COMMANDS, *PARTS])
def test_help_fits_a_screen(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert call([*verb.split(), "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert 5 <= len(lines) <= 34 and max(map(len, lines)) <= 80
    if not verb:
        assert all(any(line.split()[:1] == [name] for line in lines) for name in COMMANDS)
        assert not any(line.endswith("...") for line in lines[1:]), "a verb's line of help is cut off"


def test_an_evaluation_prints_its_count_of_tokens_as_a_whole_number(capsys):
    with Progress(read({})) as progress:
        progress.evaluated({"step": 5, "epoch": 1.0, "eval_loss": 1.5, "eval_tokens": 8531.0})
    assert capsys.readouterr().err.split("eval")[1].split() == ["5", "loss", "1.5000", "tokens", "8,531"]


def step(number, **more):
    """Return what a run tells an observer of a step that took a second, at 100 tokens a second."""
    return {"step": number, "seconds": 1.0, "tokens_per_s": 100.0, "memory_mb": 1.0, "lr": 1e-4, **more}


def test_steps_that_learn_from_new_answers_say_how_good_and_how_long_they_are(capsys):
    new = {"reward": 0.25, "kl": 0.125, "length": 17.5, "rollout_seconds": 0.75}
    with Progress(read({"train": {"log_every": 3}})) as progress:
        progress.start({"steps": 20, "trained": 1})
        progress.wrote(4, 8)  # in a pipe: nothing
        for number in range(1, 11):  # answers are written before steps 1, 3, 5, 7, 9
            progress.step(step(number, loss=0.5, **(new if number % 2 else {})))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step")]
    assert [line.split()[1] for line in lines] == ["1", "5", "9"], (
        "3 is too early, 4 has no answers of its own"
    )
    assert "   reward 0.25   kl 0.125   length 17.5   written in 0.8 s   loss 0.5000   " in lines[0]
    assert "   400 tok/s   " in lines[0]  # 100 tokens, without the time in which the answers were written


def test_a_step_that_is_left_out_says_why(capsys):
    told = step(1, left_out="no answer is better than another", tokens_per_s=0.0)
    del told["lr"]
    with Progress(read({})) as progress:
        progress.start({"steps": 2, "trained": 1})
        progress.step(told)
        progress.step(step(2, skipped="loss"))
    first, second = (line for line in capsys.readouterr().err.splitlines() if line.startswith("step"))
    assert "left out: no answer is better than another" in first and "tok/s" not in first
    assert "skipped: not finite" in second


def test_a_terminal_shows_how_many_answers_are_written(monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with Progress(read({})) as progress:
        progress.start({"steps": 2, "trained": 1})
        progress.wrote(24, 64)
        during = screen.getvalue()
        progress.wrote(64, 64)
        after = screen.getvalue()[len(during) :]
    assert "writing answers" in during and "24/64" in during and "0/2" in during
    assert "writing" not in after and "0/2" in after


def test_rows_that_only_ask_are_shown_before_a_reward_is_chosen(tmp_path, capsys):
    write_model(tmp_path / "model")
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": "What does the cat want? "}] * 40)
    words = ["--model", "seedling", "--stage", "ppo"]
    settings = ["stage.max_new_tokens=8", "data.max_length=64"]
    assert call(["data", "show", str(tmp_path / "prompts.jsonl"), *words]) == 0
    out, err = capsys.readouterr()
    assert "What does the cat want? " in out and err.endswith(" stage=ppo\n")
    recipe = ["--model", str(tmp_path / "model"), "stage=ppo", *settings]
    assert call(["plan", *recipe]) == 0
    assert call(["train", *recipe, "--data", str(tmp_path / "prompts.jsonl")]) == 2
    assert "stage.rewards=" in capsys.readouterr().err


def test_methods_are_listed_for_people_and_programs(capsys):
    assert call(["methods"]) == 0
    out, err = capsys.readouterr()
    assert all(name in out for name in cards()) and "next" in err
    assert "sublayers, norms, blocks" in out and "KINDS" not in out, "places are words, not source"
    assert call(["methods", "--json"]) == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)] == list(cards())


def test_a_card_shows_the_docstring_and_every_setting(capsys):
    assert call(["methods", "lora"]) == 0
    out = capsys.readouterr().out
    assert cards()["lora"].doc.splitlines()[0] in out and all(
        name in out for name in cards()["lora"].settings
    )


def test_methods_are_counted_on_a_base(capsys):
    assert call(["methods", "--model", "seedling", "--json"]) == 0
    trained = {one["name"]: one["trained"] for one in json.loads(capsys.readouterr().out)}
    # 4 blocks, 192 wide, MLP 512: four squares and three rectangles at rank 8
    assert trained["lora"] == 4 * 8 * (4 * (192 + 192) + 3 * (192 + 512)) and set(trained) == set(cards())


def test_the_pages_of_the_methods_are_those_of_their_files():
    written = {path.name: path.read_text() for path in (ROOT / "docs" / "methods").iterdir()}
    assert written == pages(), "run `graft methods --write docs/methods`"


def test_the_keys_are_a_recipe(capsys, tmp_path):
    assert call(["train", "--keys", "stage=dpo"]) == 0
    told = capsys.readouterr().out
    assert "objective: dpo" in told and "beta: 0.1" in told and "# simpo: the margin" in told
    assert call(["train", "--keys"]) == 0
    (tmp_path / "r.yaml").write_text(capsys.readouterr().out)
    assert call(["train", str(tmp_path / "r.yaml"), "--dry-run"]) == 0


BAD = """
nonsense
train
train no-such.yaml
train train.lerning_rate=1
train method=loar
train quant=nf5
train --model m --data none.jsonl
train model=x nonsense
train --train.lr
train RUN train.lr=5e-5
train -- \x00
train = ==
methods loar
eval
eval no/such/model --data x
eval MODEL
eval RUN --metric blue
eval RUN --data none.jsonl
chat ./nowhere
chat ./nowhere.gguf
chat MODEL --adapter ./nowhere
chat MODEL --quant nf5
chat MODEL --prompt x --top-p 7
export MODEL OUT --to gguff
export MODEL OUT --to gguf --type q4_7
export MODEL OUT --to gguf --type q4_k_m
export MODEL OUT --to hf --type q8_0
export MODEL OUT --to gguf-lora
export RUN MODEL
export MODEL OUT --adapter MODEL
merge RUN
merge RUN OUT --as pt
merge RUN OUT --into packed
merge RUN OUT --into paked
merge RUN MODEL
merge RUN OUT --adapter b=RUN --weight c=0.5
merge RUN OUT --adapter b=RUN --weight b=half
merge RUN OUT --adapter b=RUN --how tiess
merge RUN OUT --adapter b=RUN --how ties
merge MODEL OUT --weight a=0.5
verify
verify ./nowhere
verify MODEL
convert MODEL OUT
convert MODEL OUT --base ./nowhere
convert MODEL OUT --base MODEL
convert MODEL OUT --base MODEL --rest drop
convert MODEL OUT --base MODEL --alpha 16
convert MODEL RUN --base MODEL
convert ROWS OUT
convert ROWS OUT --alpha 16 --r 4
convert ROWS OUT --alpha 16
quantize MODEL OUT --quant nf5
quantize MODEL OUT --quant int4 --group-size 33
quantize MODEL OUT --quant nf4 --data ROWS
quantize MODEL OUT --quant int4 --data none.jsonl
data
data show none.jsonl --model MODEL
data show ROWS --stage stfu
plan --model ./nowhere
compare MODEL MODEL
compare RUN MODEL --prompts ./nowhere
""".strip().splitlines()


@pytest.mark.parametrize("line", BAD, ids=lambda line: line.replace("\x00", "NUL"))
def test_bad_input_ends_in_lines_and_not_in_a_traceback(line, home, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    named = {
        "MODEL": home / "model",
        "RUN": home / "run",
        "ROWS": home / "rows.jsonl",
        "OUT": tmp_path / "out",
    }
    code = call([str(named.get(word, word)) for word in line.split()])
    err = capsys.readouterr().err
    assert code in (1, 2), err
    assert "Traceback" not in err and "bug in Graft" not in err
    assert "Usage:" in err or all(part in err for part in ("graft: error:", "expected:", "to do:"))
    assert not (tmp_path / "out").exists()


def test_a_defect_is_one_line_and_a_file(capsys, monkeypatch):
    monkeypatch.setattr("graft.cli.methods.cards", lambda: 1 / 0)
    assert call(["methods"]) == 70
    err = capsys.readouterr().err
    assert "ZeroDivisionError" in err and "Traceback" not in err
    with open(re.search(r"(\S+\.txt)", err)[1], encoding="utf-8") as file:
        assert "Traceback" in file.read()


@pytest.mark.parametrize(
    ("raised", "code"),
    [(KeyboardInterrupt(), 130), (OSError(28, "No space left on device"), 74), (SystemExit(3), 3)],
)
def test_exit_codes_tell_what_happened(raised, code, monkeypatch, capsys):
    def fail():
        raise raised

    monkeypatch.setattr("graft.cli.methods.cards", fail)
    assert call(["methods"]) == code


@pytest.mark.parametrize(
    ("words", "recipe", "changes"),
    [
        (["--train.max_steps", "2"], None, ["train.max_steps=2"]),
        (["--train.max_steps", "2", "mine.yaml"], "mine.yaml", ["train.max_steps=2"]),
        (["mine.yaml", "--train.lr=1e-3", "data.limit=5"], "mine.yaml", ["train.lr=1e-3", "data.limit=5"]),
        (["a=1", "mine.yaml", "--b", "2"], "mine.yaml", ["a=1", "b=2"]),
        (["--modle", "seedling"], None, ["modle=seedling"]),
        (["--train.compile", "--train.lr", "1"], None, ["train.compile=true", "train.lr=1"]),
        (["--max-steps", "2", "--train.batch-size=4"], None, ["max_steps=2", "train.batch_size=4"]),
        (["mine.yaml", "other.yaml"], "mine.yaml", ["other.yaml"]),
        ([], None, []),
    ],
)
def test_only_a_word_that_changes_nothing_names_the_recipe(words, recipe, changes):
    assert separated(words) == (recipe, changes)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("train --modle seedling --data x.jsonl", "--model?"),
        ("train --model seedling --epoch 3", "--train.epochs?"),
        ("train --lr 1e-4", "--train.lr?"),
        ("train --limit 5", "--data.limit or --evaluate.limit?"),
        ("train --r 8", "--method.r?"),
        ("plan --optimiser adamw", "--train.optimizer?"),
        ("eval RUN --metrc bleu", "--metric?"),
        ("eval --model RUN", "write it without --model: graft eval MODEL"),
        ("data show ROWS --stagee sft", "--stage?"),
        ("demo --foldre x", "--folder?"),
        ("export RUN OUT --froce", "--force?"),
    ],
)
def test_a_misspelt_option_is_told_with_the_nearest(words, meant, capsys):
    assert call(words.split()) == 2
    err = capsys.readouterr().err
    assert "graft: error: unknown option --" in err and meant in err


def test_what_is_missing_or_unknown_is_told_in_three_parts(capsys):
    assert call(["evl"]) == 2
    assert "unknown command evl" in (err := capsys.readouterr().err) and "did you mean eval?" in err
    assert call(["eval"]) == 2
    err = capsys.readouterr().err
    assert (
        "missing argument 'model'" in err.lower()
        and "expected: graft eval" in err
        and "graft eval --help" in err
    )
    assert call(["chat", "x", "--max-new-tokens", "many"]) == 2
    assert "--max-new-tokens" in (err := capsys.readouterr().err) and "to do:" in err


def test_the_version_is_that_of_the_package(capsys):
    assert call(["--version"]) == 0
    assert capsys.readouterr().out == f"graft {graft.__version__}\n"


def test_a_remedy_of_the_library_names_the_option_of_the_command(home, capsys):
    assert call(["export", str(home / "run"), str(home / "model")]) == 2
    assert "or pass --force\n" in (err := capsys.readouterr().err) and "force=True" not in err


def test_a_run_does_not_go_into_a_folder_of_other_files(home, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("x")
    (tmp_path / "photos" / ".hidden").write_text("x")
    words = ["train", "--model", str(home / "model"), "--data", str(home / "rows.jsonl")]
    assert call([*words, "--output", str(tmp_path / "photos")]) == 2
    assert "cat.jpg" in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "photos").iterdir()) == [".hidden", "cat.jpg"]


def test_a_run_opens_from_another_folder_than_it_was_trained_in(tmp_path, capsys, monkeypatch):
    (tmp_path / "work").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    write_model(Path("model"))
    write_rows(Path("rows.jsonl"))
    changes = "dtype=fp32 method.r=2 train.max_steps=1 train.batch_size=4 data.eval=0.25"
    assert (
        call(["train", "--model", "model", "--data", "rows.jsonl", "--output", "run", *changes.split()]) == 0
    )
    named = json.loads(Path("run/adapter/adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(tmp_path / "work" / "model")  # PEFT finds it, too
    assert "model: model" in Path("run/recipe.yaml").read_text(), "a recipe stays as it was written"
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert call(["eval", "../work/run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scored"] == 6
    assert call(["chat", "../work/run/adapter", "--prompt", "Day", "--max-new-tokens", "2"]) == 0
    (tmp_path / "work").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")  # names lead to the same files from here
    assert call(["eval", "run"]) == 0
    assert call(["train", "run"]) == 0
    assert "nothing is left to train" in capsys.readouterr().err


def test_a_run_says_what_happens_and_what_next(home, capsys):
    words = training(home, "said", "train.max_steps=2 data.eval=null train.log_every=1 num_train_epochs=1")
    assert call([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    for said in (
        "base ",
        "adapter lora on 14 sites",
        "data    24 rows read",
        "step     2   loss",
        "lr",
        "tok/s",
        "GiB",
        "eta",
        "saved",
        "next    graft chat",
    ):
        assert said in err
    assert "num_train_epochs is train.epochs here" in err
    assert json.loads(out)["steps"] == 2


def test_every_command_accepts_a_run(home, capsys, tmp_path):
    run = str(home / "run")
    commands = f"""
        plan {run}
        train {run}
        eval {run}
        chat {run} --prompt Day --max-new-tokens 3
        compare {run} {run} --limit 1
        export {run} {tmp_path}/peft --to peft
        merge {run} {tmp_path}/merged --lossy
        verify {tmp_path}/peft
        verify {tmp_path}/merged
        data show {run}
    """.strip().splitlines()
    for line in commands:
        assert call(line.split()) == 0, line
        err = capsys.readouterr().err
        assert err.splitlines()[-1].startswith("next    graft "), line


def test_a_merged_model_is_quantised_and_asked(home, tmp_path, capsys):
    assert call(["export", str(home / "run"), str(tmp_path / "m"), "--lossy"]) == 0
    assert call(["quantize", str(tmp_path / "m"), str(tmp_path / "q")]) == 0
    assert call(["chat", str(tmp_path / "q"), "--raw", "--prompt", "Day 1.", "--max-new-tokens", "2"]) == 0
    assert (
        json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]["quant_method"]
        == "graft"
    )


def test_a_model_is_exported_in_four_bits_and_called_rounded(home, tmp_path, capsys):
    assert call(["export", str(home / "model"), str(tmp_path / "m"), "--to", "gptq"]) == 0
    err = capsys.readouterr().err.splitlines()
    assert any(line.startswith("checked every packed layer rounded anew; weights differ by") for line in err)
    assert err[-1] == f"next    graft chat {tmp_path / 'm'}"
    assert call(["chat", str(tmp_path / "m"), "--raw", "--prompt", "Day 1.", "--max-new-tokens", "2"]) == 0


def test_a_model_is_quantised_by_rows_and_by_a_run(home, tmp_path, capsys):
    for out, data in (("rows", home / "rows.jsonl"), ("run", home / "run")):
        words = ["--to", "int4", "--group-size", "64", "--data", str(data), "--rows", "4"]
        assert call(["quantize", str(home / "model"), str(tmp_path / out), *words]) == 0
        assert "block   1 of" in capsys.readouterr().err
        facts = json.loads((tmp_path / out / "config.json").read_text())["quantization_config"]
        assert (facts["scheme"], facts["block"]) == ("int4", 64)
    assert call(["chat", str(tmp_path / "run"), "--raw", "--prompt", "Day 1.", "--max-new-tokens", "2"]) == 0


def test_a_merge_into_a_quantised_base_offers_three_ways(home, tmp_path, capsys):
    adapter = ["--adapter", str(home / "run"), "--quant", "nf4", "--lossy"]
    assert call(["merge", str(home / "model"), str(tmp_path / "m"), *adapter]) == 0
    err = capsys.readouterr().err
    table = [line.split()[:2] for line in err.splitlines()]
    assert ["dequantised", "16"] in table and ["original", "16"] in table and ["packed", "4.13"] in table
    assert "merged  run: " in err and "checked " in err and "perplexity" in err
    chosen = ["merge", str(home / "model"), str(tmp_path / "q"), *adapter, "--into", "packed", "--json"]
    assert call(chosen) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["choices"] == [] and facts["certificate"]["into"] == "packed" and facts["packed"] == "nf4"
    assert call(["verify", str(tmp_path / "q"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["same"] is True


def test_a_folder_that_was_changed_is_not_verified(home, tmp_path, capsys):
    assert call(["export", str(home / "run"), str(tmp_path / "m"), "--lossy"]) == 0
    (tmp_path / "m" / "config.json").write_text((tmp_path / "m" / "config.json").read_text() + "\n")
    capsys.readouterr()
    assert call(["verify", str(tmp_path / "m")]) == 1
    out, err = capsys.readouterr()
    assert "config.json was changed" in out and err.splitlines()[-1].startswith("next ")
    assert "error" not in err


def test_two_runs_are_blended_into_an_adapter_and_into_a_model(home, tmp_path, capsys):
    words = training(
        home, "other", "dtype=fp32 method.r=3 train.max_steps=2 data.eval=null --train.lr 1e-2 train.seed=7"
    )
    assert call(words) == 0
    both = [
        "--adapter",
        f"a={home / 'run'}",
        "--adapter",
        f"b={home / 'other'}",
        "--weight",
        "b=-0.5",
        "--lossy",
    ]
    capsys.readouterr()
    assert call(["merge", str(home / "model"), str(tmp_path / "ab"), *both, "--as", "adapter", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["blend"]["weights"] == {"a": 1.0, "b": -0.5}
    assert err.splitlines()[-1] == f"next    graft chat {home / 'model'} --adapter {tmp_path / 'ab'}"
    assert json.loads((tmp_path / "ab" / "adapter_config.json").read_text())["r"] == 5  # exact: ranks add up
    assert (
        call(["merge", str(home / "model"), str(tmp_path / "m"), *both, "--how=ties_svd", "--density=0.5"])
        == 0
    )
    out, err = capsys.readouterr()
    assert "blended 1 a + -0.5 b by ties_svd" in err and "merged  a + b" in err
    assert (tmp_path / "m" / "config.json").exists()


def test_one_adapter_is_weighed(home, tmp_path, capsys):
    run = ["merge", str(home / "run"), str(tmp_path / "half"), "--weight", "run=0.5", "--as", "adapter"]
    assert call(run) == 0
    assert "blended 0.5 run by cat" in capsys.readouterr().err


def test_a_merged_model_is_taken_apart_again(home, tmp_path, capsys):
    assert call(["merge", str(home / "run"), str(tmp_path / "tuned"), "--lossy"]) == 0
    capsys.readouterr()
    words = [
        "convert",
        str(tmp_path / "tuned"),
        str(tmp_path / "x"),
        "--base",
        str(home / "model"),
        "--r",
        "2",
        "--json",
    ]
    assert call(words) == 0
    out, err = capsys.readouterr()
    facts = json.loads(out)
    assert len(facts["layers"]) == 14 and facts["left"] == []
    assert err.splitlines()[-1].startswith("next    graft chat") and "layer   model.layers.0" in err
    assert min(layer["kept"] for layer in facts["layers"].values()) > 0.99
    assert (
        call(["chat", str(home / "model"), "--adapter", str(tmp_path / "x"), "--prompt", "Day", "--raw"]) == 0
    )


def test_eval_and_plan_speak_json(home, capsys):
    assert call(["eval", str(home / "run"), "--json", "--limit", "2"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert set(facts["columns"]) == {"before", "after"}
    assert (facts["scored"], facts["of"], facts["left_out"]) == (2, 6, {})
    assert call(["plan", str(home / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fits"] is True


def test_an_evaluation_says_how_many_rows_it_is_about(home, tmp_path, capsys):
    given = [*rows(3), {"prompt": "The cat wants a ball. " * 60, "completion": "x"}]
    data = str(write_rows(tmp_path / "mine.jsonl", given))
    assert call(["eval", str(home / "run"), "--data", data]) == 0
    out = capsys.readouterr().out
    assert "scored 3 of 4 rows" in out and "mine.jsonl:4" in out
    assert call(["eval", str(home / "run"), "--data", data, "--limit", "2"]) == 0
    assert "limit: 2 of 4 rows, sampled by seed 0" in capsys.readouterr().out


def test_a_finished_run_is_kept_and_not_said_to_be_written(home, capsys):
    assert call(["train", str(home / "run")]) == 0
    err = capsys.readouterr().err
    assert "nothing is left to train" in err and "kept    " in err and "wrote" not in err
    assert "eval    scored 6 of 6 rows" in err


def test_runs_scored_on_other_rows_are_compared_with_a_warning(home, capsys):
    changes = "dtype=fp32 method.r=2 train.max_steps=1 train.batch_size=4 data.eval=0.25 data.seed=1"
    assert call(training(home, "other-rows", changes)) == 0
    assert call(["compare", str(home / "run"), str(home / "other-rows"), "--prompt", "Day", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "warning the held-out rows differ" in err
    assert len(json.loads(out)["warnings"]) == 2
    assert call(["compare", str(home / "run"), str(home / "run"), "--prompt", "Day", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == []


def test_a_conversation_resets_and_switches_adapters(home, capsys, monkeypatch):
    lines = iter(["Day 1.", "/adapter base", "/adapter nobody", "/reset", "Day 1.", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert call(["chat", str(home / "run"), "--max-new-tokens", "2"]) == 0
    err = capsys.readouterr().err
    assert "base answers" in err and "unknown command /adapter nobody" in err and "forgotten" in err


def test_a_classifier_answers_with_names_and_probabilities(home, tmp_path, capsys):
    given = [
        {"text": f"Day {i}. The {'cat' if i % 2 else 'dog'} wants a ball.", "label": i % 2} for i in range(12)
    ]
    data = str(write_rows(tmp_path / "labels.jsonl", given))
    changes = "stage=classify dtype=fp32 method.r=2 train.max_steps=2 train.batch_size=4 data.eval=0.25"
    words = ["train", "--model", str(home / "model"), "--data", data, "--output", str(tmp_path / "run")]
    assert call([*words, *changes.split(), "data.tag_names=[negative, positive]"]) == 0
    err = capsys.readouterr().err
    assert " rows/s   " in err and "tok/s" not in err
    assert call(["chat", str(tmp_path / "run"), "--prompt", "Day 3. The cat wants a ball."]) == 0
    out = capsys.readouterr().out
    told = re.fullmatch(r"(negative|positive)   ([\d.]+)%   \((negative|positive) ([\d.]+)%\)\n", out)
    assert told and {told[1], told[3]} == {"negative", "positive"}
    assert float(told[2]) >= float(told[4]) and float(told[2]) + float(told[4]) == pytest.approx(
        100, abs=0.11
    )


def test_data_show_marks_what_is_learnt(home, capsys):
    assert call(["data", "show", str(home / "rows.jsonl"), "--model", str(home / "model"), "-n", "1"]) == 0
    assert "⟦The cat wants a ball.<eos>⟧" in capsys.readouterr().out


def test_prompts_come_from_a_file(home, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("Day 1.\n\nDay 2.\n")
    assert (
        call(
            [
                "compare",
                str(home / "run"),
                str(home / "model"),
                "--prompts",
                str(tmp_path / "prompts.txt"),
                "--json",
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["prompts"] == ["Day 1.", "Day 2."]


def test_the_doctor_finds_this_machine_sound(capsys):
    assert call(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["checks"].values()) == {"ok"} and found["torch"]
    assert found["dtype"] == "auto is bf16: as GRAFT_DTYPE says" and "speed" not in found


def test_the_doctor_shows_how_fast_this_machine_is(capsys, monkeypatch):
    table = (
        Product("fp32", "x Wᵀ", 512, 768, 768, 141e9),
        Product("bf16", "x Wᵀ", 512, 768, 768, 21e9),
        Product("fp32", "dy W", 512, 768, 768, 100e9),
    )
    monkeypatch.setattr(measure, "bench", lambda: Profile(table, 2.5e9, 28.6e9, thorough=True))
    assert call(["doctor", "--bench"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    wanted = ["fp32 bf16", "512 x 768 x 768 141 21", "512 x 768 x 768 100 -", "together 141 21"]
    assert all(any(line.endswith(end) for line in lines) for end in wanted)
    assert "decoding 2,500 million 4-bit weights/s" in lines and "reading 26.64 GiB/s" in lines
    assert call(["doctor", "--bench", "--json"]) == 0
    speed = json.loads(capsys.readouterr().out)["speed"]
    assert speed["products"] == {"fp32": 141e9, "bf16": 21e9} and speed["reading"] == 28.6e9
    assert speed["thorough"] and len(speed["table"]) == 3
