"""A person sees each pair once, without names, in an order by chance; what was typed is kept."""

from graft.evaluate.answer_files import Answer
from graft.evaluate.judges import Question, judged
from graft.evaluate.person import by_person

QUESTIONS = [Question(f"prompt {i}", f"one {i}", f"two {i}") for i in range(6)]


def typing(*words):
    """What a person types, line by line; nothing more is the end of the input."""
    left = list(words)

    def ask(line):
        if not left:
            raise EOFError
        return left.pop(0)

    return ask


def test_words_are_verdicts_and_others_are_asked_for_again():
    shown = []
    opinions = by_person(typing("1", " 2 ", "x", "T", "skip", "q"), shown.append)(QUESTIONS)
    assert [one and one.verdict for one in opinions] == ["1", "2", "tie", None, None, None]
    assert opinions[3] is not None and opinions[4] is None, (
        "a skipped pair has an opinion, one not shown has none"
    )
    assert len(shown) == 5 and all(text in shown[0] for text in ("1 of 6", "prompt 0", "one 0", "two 0"))


def test_a_stopped_person_goes_on_where_it_was(tmp_path):
    kept, shown = tmp_path / "kept", []
    by_person(typing("1", "2"), shown.append, kept)(QUESTIONS)
    shown.clear()
    opinions = by_person(typing("t", "t", "t", "t"), shown.append, kept)(QUESTIONS)
    assert [one.verdict for one in opinions] == ["1", "2", "tie", "tie", "tie", "tie"]
    assert len(shown) == 4 and "prompt 2" in shown[0]
    # Another person's verdicts are others.
    assert by_person(typing("2"), shown.append, kept, "me:anna")(QUESTIONS[:1])[0].verdict == "2"


def test_pairs_are_shown_once_in_an_order_by_chance_and_without_names():
    answers = {name: {f"p{i}": Answer(f"{i}") for i in range(40)} for name in ("left", "right")}
    shown = []
    said = judged(answers, by_person(typing(*"1" * 40), shown.append), "me", once=3)
    assert len(said) == 40 and len({one.prompt for one in said}) == 40
    assert 8 < sum(one.first == "left" for one in said) < 32
    assert [one.prompt for one in said] != [f"p{i}" for i in range(40)]
    assert not any(name in text for text in shown for name in ("left", "right"))
    again = judged(answers, by_person(typing(*"1" * 40), shown.append), "me", once=3)
    assert again == said and again != judged(
        answers, by_person(typing(*"1" * 40), shown.append), "me", once=4
    )


def test_what_was_not_judged_is_left_out():
    answers = {name: {f"p{i}": Answer(f"{i}") for i in range(5)} for name in ("a", "b")}
    assert len(judged(answers, by_person(typing("1", "s"), print), once=0)) == 2
