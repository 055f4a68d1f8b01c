"""An answer is printed while it is written, as it would have been printed at once."""

import pytest

from graft.cli.chat import Conversation, Spoken


@pytest.mark.parametrize(
    "pieces", [["  a", " b ", " ", "c", "\n", " "], ["abc"], [" ", "\n"], [], ["a\n\nb", " "]]
)
def test_pieces_are_printed_without_the_blanks_around_them(pieces, capsys):
    spoken = Spoken()
    for piece in pieces:
        spoken(0, piece)
    assert capsys.readouterr().out == "".join(pieces).strip()
    spoken.end("".join(pieces).strip())
    assert capsys.readouterr().out == "\n"


def test_an_answer_that_comes_at_once_is_printed_at_the_end(capsys):
    Spoken().end("a class")
    assert capsys.readouterr().out == "a class\n"


def test_a_conversation_prints_its_answers_in_pieces(monkeypatch, capsys):
    from graft.runs import open as opened

    def reply(base, prompts, adapter, *, on_text, **how):
        for piece in (" one", " two "):
            on_text(0, piece)
            said.append(capsys.readouterr().out)
        return [" one two "]

    said = []
    monkeypatch.setattr(opened, "reply", reply)
    talk = Conversation(None, None, {}, raw=False)
    talk.answer("go")
    assert said == ["one", " two"] and capsys.readouterr().out == "\n"
    assert talk.messages[-1] == {"role": "assistant", "content": "one two"}
