"""A chat template may ask for anything: it gets a second, 256 MiB and a text of a known length."""

import json
import os
import subprocess
import sys
import time

import pytest
from chat_layouts import LAYOUTS
from hostile_templates import BROKEN, ESCAPES, GROWING, SHIELD, growing

from graft.data import prepare
from graft.data.rendering import renderer
from graft.data.rows import BadRow, Row
from graft.data.sandbox import TEXT, TIMES
from graft.data.templates import Template, prompt_ids
from graft.errors import DataError
from graft.stages.sft import SFT

TALK = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]
HARMLESS = ("power of a text", "round", "striptags")  # jinja2 limits these by itself
ALL = growing() if os.environ.get("GRAFT_FUZZ") else growing(("10000000000",))
SOME = [
    "multiplied", "to the power of", "formatted", "json with blanks", "a range of a range", "joined",
    "replaced", "doubled", "nested as json", "nested as a key", "two macros of itself", "a loop of itself",
]  # fmt: skip
NAMES = list(ALL) if os.environ.get("GRAFT_FUZZ") else [f"{name}, 10000000000" for name in SOME]


def written(tokenizer, text, messages=TALK):
    """What a template writes, or the error that says why not."""
    try:
        return Template(tokenizer, text).render(messages)
    except (BadRow, DataError) as error:
        return error


@pytest.mark.parametrize("name", NAMES)
def test_a_template_that_asks_for_too_much_is_told_in_time(name, bpe):
    began = time.monotonic()
    said = written(bpe, ALL[name])
    assert time.monotonic() - began < 30  # of a machine with other work; alone it takes a second
    if name.partition(",")[0] in HARMLESS:
        assert len(said) < 1_000_000
    else:
        assert isinstance(said, BadRow | DataError) and "template" in str(said)


def test_every_way_to_ask_for_too_much_is_among_them():
    assert len(GROWING) > 50 and set(SOME) <= set(GROWING)


# A small process: the peak of a child counts what its parent had when it was started.
ASKS = """
import json, resource, sys
from graft.data.rendering import renderer
from graft.errors import DataError
messages, refused = json.loads(sys.argv[1]), 0
for text in json.loads(sys.argv[2]):
    facts = json.dumps({"text": text, "variables": {}, "controls": [], "eos": [None, None]})
    try:
        renderer.answers(facts, "render", [{"messages": messages}])
    except DataError:
        refused += 1
renderer.close()  # its memory counts when it has ended
print(refused, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def test_no_template_takes_more_memory_than_it_may():
    texts = [GROWING["multiplied"].replace("BIG", "200000000"), GROWING["nested as text"]]
    words = [sys.executable, "-c", ASKS, json.dumps(TALK), json.dumps(texts)]
    refused, peak = map(int, subprocess.check_output(words, timeout=100).split())
    assert refused and peak < 500 << 10


@pytest.mark.parametrize("text", ESCAPES)
def test_no_template_gets_out(text, bpe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = written(bpe, text)
    assert isinstance(said, BadRow) or not any(word in said for word in ("class", "function", "built-in"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_template_is_told(text, bpe):
    said = written(bpe, text)
    assert isinstance(said, str | BadRow | DataError)
    assert len(str(said)) < 100_000


def test_the_next_template_is_written_as_if_nothing_had_been(bpe):
    assert isinstance(written(bpe, GROWING["to the power of"]), DataError)
    assert written(bpe, SHIELD) == "user: the cat</s>\nassistant: sat</s>\n"


def test_a_text_may_be_sixteen_times_as_long_as_what_is_said(bpe):
    long = [TALK[0] | {"content": "a" * TEXT}]
    assert len(written(bpe, "{{ messages[0].content * 16 }}", long)) == TIMES * TEXT
    said = written(bpe, "{{ messages[0].content * 18 }}", long)
    assert isinstance(said, DataError) and "characters" in str(said)


def test_the_row_at_which_a_template_asks_for_too_much_is_named(bpe):
    text = SHIELD + "{% if messages[0].content == 'b' %}" + GROWING["a range of a range"] + "{% endif %}"
    rows = [
        Row(f"a.jsonl:{n}", "chat", [TALK[0] | {"content": word}, TALK[1]]) for n, word in enumerate("aaba")
    ]
    with pytest.raises(DataError, match=r"^a\.jsonl:2: the chat template needs more than 1 s"):
        Template(bpe, text).learn_all(rows)


@pytest.mark.parametrize("door", ["a prompt", "rows"])
def test_every_door_has_the_limit(door, bpe, tmp_path, settings, monkeypatch):
    bomb = tmp_path / "bomb.jinja"
    bomb.write_text(SHIELD + GROWING["to the power of"])
    if door == "a prompt":
        with pytest.raises(DataError, match="the chat template"):
            prompt_ids(TALK[:1], bpe, template=bomb.read_text())
        return
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"messages": TALK}))
    with pytest.raises(DataError, match="the chat template"):
        prepare(settings(train=str(file), template=str(bomb)), bpe, SFT)


def test_a_process_that_was_killed_is_started_again(bpe):
    assert written(bpe, SHIELD)
    renderer._process.kill()
    renderer._process.wait()
    assert isinstance(written(bpe, SHIELD), DataError)  # it cannot be known who ended it
    assert written(bpe, SHIELD).startswith("user: the cat")


def test_many_rows_are_asked_at_once_and_answered_in_order(bpe):
    text = LAYOUTS["chatml"].jinja
    rows = [
        Row(f"f:{n}", "chat", [TALK[0] | {"content": f"{n} " * 500}, TALK[1]]) for n in range(1500)
    ]  # more than one request
    told = Template(bpe, text).learn_all(rows)
    assert [one.text.split()[1] for one in told] == [str(n) for n in range(1500)]
    assert told[7] == Template(bpe, text).learn(rows[7])
