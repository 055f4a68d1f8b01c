"""An adapter is given by its name or itself everywhere, and a wrong one is answered in three parts."""

import pytest
import torch

import graft
from graft.errors import AdapterError, UsageError
from graft.methods.lora import LoRA
from models import inputs, randomise, tiny_base


@pytest.fixture
def base():
    base = tiny_base()
    randomise(base.attach("sql", LoRA(r=2)), 1)
    randomise(base.attach("poet", LoRA(r=2)), 2)
    return base


def test_an_adapter_is_as_good_as_its_name(base):
    ids, sql = inputs("llama")["ids"], base.adapters["sql"]
    by_name = base(ids, adapters=["sql"] * len(ids)).logits
    assert torch.equal(base(ids, adapters=[sql] * len(ids)).logits, by_name)
    assert torch.equal(base(ids, adapters="sql").logits, by_name)
    assert torch.equal(base(ids, adapters=sql).logits, by_name)
    with base.using(sql):
        assert base.active == "sql" and torch.equal(base(ids).logits, by_name)
    base.merge(sql)
    base.unmerge(sql)
    assert base.adapters[sql] is sql
    assert base.detach(sql) is sql and "sql" not in base.adapters


def test_adapters_are_blended_by_name_or_themselves(base):
    by_name = graft.blend(base, {"sql": 0.5, "poet": 0.5}, "one")
    themselves = graft.blend(base, {base.adapters["sql"]: 0.5, base.adapters["poet"]: 0.5}, "two")
    for mine, other in zip(by_name.parameters(), themselves.parameters(), strict=True):
        assert torch.equal(mine, other)


CALLS = {
    "using": lambda base, one: base.using(one).__enter__(),
    "detach": lambda base, one: base.detach(one),
    "merge": lambda base, one: base.merge(one),
    "unmerge": lambda base, one: base.unmerge(one),
    "forward": lambda base, one: base(inputs("llama")["ids"], adapters=one),
    "rows": lambda base, one: base(inputs("llama")["ids"], adapters=["sql", None, one]),
    "hidden": lambda base, one: base.hidden(inputs("llama")["ids"], adapters=one),
    "generate": lambda base, one: base.generate("a", adapters=one),
    "train": lambda base, one: graft.train(base, one, data="rows.jsonl"),
    "export": lambda base, one: graft.export(base, "out", to="peft", adapter=one),
    "blend": lambda base, one: graft.blend(base, {one: 1.0}, "new"),
    "adapters": lambda base, one: base.adapters[one],
    "head": lambda base, one: base.head_logits(torch.zeros(1, 64), one),
}


@pytest.mark.parametrize("call", CALLS)
def test_an_unknown_name_is_answered_by_the_nearest(base, call):
    with pytest.raises(AdapterError, match=r"adapter='sqll'.*one of sql, poet.*did you mean 'sql'"):
        CALLS[call](base, "sqll")


@pytest.mark.parametrize("call", CALLS)
def test_an_adapter_of_another_base_is_refused(base, call):
    stranger = tiny_base().attach("sql", LoRA(r=2))
    with pytest.raises(AdapterError, match="is not on this base, which has another one called 'sql'"):
        CALLS[call](base, stranger)


@pytest.mark.parametrize("call", sorted(set(CALLS) - {"forward", "hidden", "generate"}))
def test_what_is_no_adapter_is_refused(base, call):
    with pytest.raises(UsageError, match="given as 5"):
        CALLS[call](base, 5)


def test_a_wrong_number_of_names_says_how_one_is_meant_for_all(base):
    ids = inputs("llama")["ids"]
    with pytest.raises(UsageError, match=r'2 names for 3 rows.*adapters="sql"'):
        base(ids, adapters=["sql", "poet"])
    with pytest.raises(UsageError, match="adapters=5"):
        base(ids, adapters=5)


def test_a_detached_adapter_is_told_from_one_that_is_there(base):
    gone = base.detach("sql")
    with pytest.raises(AdapterError, match="is not on this base"):
        base.merge(gone)
