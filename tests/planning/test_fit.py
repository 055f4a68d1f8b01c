"""What a model can take: positions, tokens. Right values: arithmetic with the sizes of the models below."""

import json
import shutil
import warnings

import pytest
import torch
from tiny_folder import rows, write_model, write_rows
from transformers import BertConfig, BertModel, GPT2Config, LlamaConfig, RobertaConfig, T5Config

import graft
from graft.cli import call
from graft.data.encode import Example
from graft.data.train_tokenizer import train_bpe
from graft.errors import DataError, ModelError, Notice
from graft.planning.fit import fitting, positions_taken
from graft.recipe import read
from graft.runs.look import look
from graft.runs.open import Opened, open_model
from graft.runs.score import score
from graft.stages.pretrain import Hidden

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit")
    write_model(folder / "model")  # 128 positions
    write_rows(folder / "rows.jsonl")
    shutil.copytree(folder / "model", folder / "mute")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / "mute" / name).unlink(missing_ok=True)
    shutil.copytree(folder / "model", folder / "wide")
    return folder


def room(config, **changes):
    recipe = read({"model": "m", **changes})
    return fitting(recipe, config, positions_taken(recipe, config)).data.max_length


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(**TINY, max_position_embeddings=256), 256),
        (LlamaConfig(**TINY, max_position_embeddings=4096), 1024),  # data.max_length is enough
        (GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=300), 300),
        (RobertaConfig(**TINY, max_position_embeddings=514, pad_token_id=1), 512),  # it counts from pad + 1
        (T5Config(d_model=16, num_layers=1, num_heads=2), 1024),  # relative positions: no limit
    ],
)
def test_rows_are_as_long_as_the_models_positions_allow(config, expected):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert room(config) == expected
    notes = [str(w.message) for w in caught if w.category is Notice]
    assert notes == (
        [f"data.max_length is {expected} here, not 1024: the model has {expected} positions"]
        * (expected < 1024)
    )


@pytest.mark.parametrize(
    ("method", "taken"),
    [
        ({"name": "prompt", "num_virtual_tokens": 7}, 7),
        ({"name": "prefix", "num_virtual_tokens": 5}, 5),
        ({"name": "p_tuning", "num_virtual_tokens": 9}, 9),
        ({"name": "lora"}, 0),
    ],
)
def test_virtual_tokens_take_positions(method, taken):
    config = LlamaConfig(**TINY, vocab_size=50, max_position_embeddings=64)
    with pytest.warns(Notice, match="64 positions"):
        assert room(config, method=method) == 64 - taken


@pytest.mark.parametrize("method", ["lora", {"name": "prompt", "num_virtual_tokens": 6}])
def test_long_texts_are_classified_by_a_model_with_a_table_of_positions(home, method):
    """Where a row were longer than BERT's table, torch would fail."""
    folder, texts = home / "bert", [row["prompt"] for row in rows()]
    if not folder.exists():
        tokenizer = train_bpe(texts, 280)
        torch.manual_seed(0)
        config = BertConfig(**TINY, vocab_size=len(tokenizer), max_position_embeddings=32)
        BertModel(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    labelled = [{"text": "ball " * (90 if i == 0 else 2) + str(i), "label": i % 2} for i in range(12)]
    data = write_rows(home / "long.jsonl", labelled)
    name = method if isinstance(method, str) else method["name"]
    settings = {
        "model": str(folder), "dtype": "fp32", "stage": "classify", "method": method,
        "data": {"train": str(data), "eval": 0.5}, "train": {"max_steps": 1, "batch_size": 12},
        "output": str(home / name),
    }  # fmt: skip
    result = graft.run(settings)
    report = json.loads((result.folder / "data_report.json").read_text())
    assert report["max_length"] == 32 - (6 if name == "prompt" else 0) and report["cut"] == 1
    assert result.coverage["scored"] == 6

    opened = open_model(str(result.folder))
    assert opened.ask(["ball " * 90])[0] in ("0", "1")


def test_plan_and_data_show_cut_rows_as_training_does(home, capsys):
    assert call(["data", "show", str(home / "rows.jsonl"), "--model", str(home / "model")]) == 0
    out, err = capsys.readouterr()
    assert "limit 128" in out and "note    data.max_length is 128 here, not 1024" in err
    changes = ["method.name=prompt", "method.num_virtual_tokens=28"]
    assert call(["plan", "--model", str(home / "model"), *changes]) == 0
    assert "data.max_length is 100 here" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "train --model MUTE --data ROWS --output OUT train.max_steps=1",
        "eval MUTE --data ROWS",
        "chat MUTE --prompt x",
        "data show ROWS --model MUTE",
        "plan --model MUTE",
        "compare MUTE MUTE --prompt x",
    ],
)
def test_a_folder_without_a_tokenizer_is_told_by_every_verb(home, tmp_path, line, capsys):
    named = {"MUTE": home / "mute", "ROWS": home / "rows.jsonl", "OUT": tmp_path / "out"}
    assert call([str(named.get(word, word)) for word in line.split()]) in (1, 2)
    err = capsys.readouterr().err
    assert "no tokenizer" in err and "fits" not in err and "bug in Graft" not in err


@pytest.fixture(scope="module")
def wide(home):
    """A model whose tokenizer has three tokens more than its table."""
    tokenizer = graft.load(home / "wide").tokenizer
    tokenizer.add_tokens(["<a>", "<b>"], special_tokens=True)
    tokenizer.add_tokens(["kitten"])
    tokenizer.save_pretrained(home / "wide")
    return home / "wide"


def words(home, model, data, out):
    return [
        "train",
        "--model",
        str(model),
        "--data",
        str(data),
        "--output",
        str(out),
        "train.max_steps=1",
        "dtype=fp32",
    ]


def test_tokens_that_no_row_uses_are_noted_once_before_the_plan(home, wide, tmp_path, capsys):
    assert call(words(home, wide, home / "rows.jsonl", tmp_path / "out")) == 0
    err = capsys.readouterr().err
    size = len(graft.load(home / "model").tokenizer)
    assert err.count(f"has {size + 3} tokens, the model {size}") == 1
    assert err.index("tokens, the model") < err.index("fits")


@pytest.mark.parametrize("place", ["completion", "prompt"])
def test_rows_with_tokens_that_the_model_lacks_are_refused_or_left_out(home, wide, tmp_path, place, capsys):
    given = rows(8)
    given[3][place] += " kitten"
    data = write_rows(tmp_path / "rows.jsonl", given)
    assert call(words(home, wide, data, tmp_path / "out")) == 1
    err = capsys.readouterr().err
    assert "rows.jsonl:4" in err and "'kitten'" in err and "bug in Graft" not in err
    assert call([*words(home, wide, data, tmp_path / "out"), "data.bad_rows=skip", "data.eval=null"]) == 0
    assert "1 x token that the model lacks" in capsys.readouterr().err


def test_rows_scored_and_prompts_with_tokens_that_the_model_lacks(wide, tmp_path):

    base = graft.load(wide)
    given = rows(4)
    given[1]["completion"] = "The kitten."
    recipe = read({"model": str(wide)})
    coverage = score(Opened(base), recipe, str(write_rows(tmp_path / "r.jsonl", given))).coverage
    assert (coverage.scored, coverage.of) == (3, 4) and coverage.left_out[0].source.endswith("r.jsonl:2")
    with pytest.raises(DataError, match="'kitten'"):
        base.generate(["The kitten"], max_new_tokens=1)


def test_an_answer_that_ends_at_the_last_position_is_told(home):
    base = graft.load(home / "model")
    with pytest.warns(Notice, match="answers end at the model's 128 positions"):
        base.generate(["Day 1."], max_new_tokens=128)


def test_training_on_a_base_without_a_tokenizer_is_refused(home):
    base = graft.load(home / "mute")
    with pytest.raises(ModelError, match="no tokenizer"):
        graft.train(base, base.attach("x", graft.LoRA(r=2)), data=home / "rows.jsonl")


def test_look_refuses_rows_with_tokens_that_the_model_lacks(wide, tmp_path):
    data = write_rows(tmp_path / "r.jsonl", [{"prompt": "a", "completion": "kitten"}])
    with pytest.raises(DataError, match="token that the model lacks"):
        look(read({"model": str(wide), "data": {"train": str(data), "eval": None}}), 1)


def test_words_drawn_in_place_of_hidden_ones_are_the_models_own():
    tokenizer = train_bpe([row["prompt"] for row in rows()], 280)
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    size = len(tokenizer)
    tokenizer.add_tokens([f"word{i}" for i in range(500)])
    hidden = Hidden(tokenizer, 64, size, causal=False)
    example = Example([10] * 64, [10] * 64)
    drawn = [i for row in range(20) for i in hidden.draw(example, 0, 0, 2, row).ids]
    assert max(drawn) < size and len(set(drawn)) > 10  # one in ten of the hidden is another word
