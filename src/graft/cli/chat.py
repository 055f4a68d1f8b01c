"""graft chat: talk to a run, a model, or a model with adapters."""

import sys
from typing import Annotated, Any

import typer

from graft.cli.say import after, show, talk


def add_to(app: typer.Typer) -> None:
    app.command("chat", help="Talk to a run or a model; --prompt asks once.")(chat)


def chat(
    model: Annotated[str, typer.Argument(help="A run's folder, an adapter's folder, a model, or seedling.")],
    adapter: Annotated[
        list[str] | None, typer.Option(help="Adapter folder, or NAME=FOLDER; repeat for several.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Answer this and stop.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text as it is, without a chat template.")
    ] = False,
    quant: Annotated[str | None, typer.Option(help="none, nf4, fp4, int8, int4, ...")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Smallest set of tokens with so much probability.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Same seed, same answers.")] = None,
) -> None:
    from graft.runs.open import open_model  # torch costs seconds: `graft chat --help` shall not wait for it

    opened = open_model(model, adapters=adapter or (), quant=quant)
    how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "seed": seed, "top_p": top_p}
    if temperature:
        how |= {"do_sample": True, "temperature": temperature}
    conversation = Conversation(opened.base, opened.adapter, how, raw=raw or not opened.by_template)
    if prompt is not None:
        show(conversation.ask(prompt))
    else:
        conversation.listen()
    after(f"graft eval {model}")


class Conversation:
    """The messages so far, and who answers them.  raw: a line is continued as it is, and nothing is remembered."""

    def __init__(self, base: Any, adapter: str | None, how: dict[str, Any], *, raw: bool) -> None:
        self.base, self.adapter, self.how, self.raw = base, adapter, how, raw
        self.messages: list[dict[str, str]] = []

    def ask(self, text: str) -> str:
        """The answer; both turns are remembered."""
        from graft.runs.open import reply  # late, as in `chat`

        asked: Any = text if self.raw else [*self.messages, {"role": "user", "content": text}]
        answer = reply(self.base, [asked], self.adapter, **self.how)[0].strip()
        self.messages += (
            [] if self.raw else [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        )
        return answer

    def listen(self) -> None:
        """Read lines until the end of input or /quit."""
        talk(
            "/reset forgets the conversation, /adapter NAME switches (/adapter base: the bare base), /quit ends"
        )
        while True:
            try:
                line = input("> " if sys.stdin.isatty() else "").strip()
            except EOFError:
                return
            if line in ("/quit", "/exit"):
                return
            if line.startswith("/"):
                self.command(line)
            elif line:
                show(self.ask(line))

    def command(self, line: str) -> None:
        """/reset or /adapter NAME; anything else is answered with what there is."""
        word, _, name = line.partition(" ")
        if word == "/reset":
            self.messages.clear()
            talk("forgotten")
        elif word == "/adapter" and (name == "base" or name in self.base.adapters):
            self.adapter = None if name == "base" else name
            talk(f"{name} answers")
        else:
            talk(
                f"{line} is no command here: /reset, /adapter {' | '.join(['base', *self.base.adapters])}, /quit"
            )
