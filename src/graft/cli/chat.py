"""graft chat: talk to a run, a model, or a model with adapters."""

import sys
from typing import Annotated, Any

import typer

from graft.cli.say import after, show, talk
from graft.cli.wait import begin

LIKELIEST = 3  # classes that are named


def add_to(app: typer.Typer) -> None:
    app.command("chat", help="Talk to a run or a model; --prompt asks once.")(chat)


def chat(
    model: Annotated[str, typer.Argument(help="A run's folder, an adapter's folder, a model, or seedling.")],
    adapter: Annotated[
        list[str] | None, typer.Option(help="Adapter folder, or NAME=FOLDER; repeat for several.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Answer this prompt and stop.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text as it is, without a chat template.")
    ] = False,
    quant: Annotated[
        str | None, typer.Option(help="How to load the base: none, nf4, int8, int4, ...")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the most likely token.")] = 0.0,
    top_p: Annotated[
        float,
        typer.Option(help="Nucleus sampling: keep the most likely tokens up to this total probability."),
    ] = 1.0,
    min_p: Annotated[
        float, typer.Option(help="Sample only tokens at least so likely, as a share of the likeliest.")
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1: tokens that were there become less likely.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answers.")] = None,
) -> None:
    begin(f"loading {model}", briefly=True)
    from graft.runs.open import open_model  # torch costs seconds: `graft chat --help` must not wait for it

    opened = open_model(model, adapters=adapter or (), quant=quant)
    sampling: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "top_p": top_p,
        "min_p": min_p,
    }
    sampling["repetition_penalty"] = repetition_penalty
    if temperature:
        sampling |= {"do_sample": True, "temperature": temperature}
    conversation = Conversation(opened.base, opened.adapter, sampling, raw=raw or not opened.by_template)
    if prompt is not None:
        begin("answering", briefly=True)
        conversation.answer(prompt)
    else:
        conversation.listen()
    after(f"graft eval {model}")


class Spoken:
    """Prints a text on stdout piece by piece, without the blanks around it."""

    def __init__(self) -> None:
        self._begun, self._blank = False, ""

    def __call__(self, row: int, piece: str) -> None:
        text = self._blank + piece if self._begun else piece.lstrip()
        words = text.rstrip()
        self._blank = text[len(words) :]
        if words:
            self._begun = True
            show(words, end="")

    def end(self, answer: str) -> None:
        """End the line, with the answer in it if none of it has come in pieces."""
        show("" if self._begun else answer)


class Conversation:
    """A conversation with one adapter of a base at a time.

    adapter: the name of the one that answers, None for the bare base.  sampling: keywords of `Base.generate`.
    raw: the model continues each line as it is, and nothing is remembered.
    """

    def __init__(self, base: Any, adapter: str | None, sampling: dict[str, Any], *, raw: bool) -> None:
        self.base = base
        self.adapter = adapter
        self.sampling = sampling
        self.raw = raw
        self.messages: list[dict[str, str]] = []

    def answer(self, text: str) -> None:
        """Print the answer to a text while it is written; of a task head the class with its probability."""
        if self.adapter is not None and self.base.adapters[self.adapter].head is not None:
            return show(classified(self.base, self.adapter, text))
        spoken = Spoken()
        spoken.end(self.ask(text, on_text=spoken))

    def ask(self, text: str, **how: Any) -> str:
        """Return the answer to a text; both turns are remembered, unless raw.

        how: more keywords of `Base.generate`.
        """
        from graft.runs.open import reply  # late, as in `chat`

        how = {**self.sampling, **how}
        if self.raw:
            return reply(self.base, [text], self.adapter, **how)[0].strip()
        asked = [*self.messages, {"role": "user", "content": text}]
        answer = reply(self.base, [asked], self.adapter, **how)[0].strip()
        self.messages = [*asked, {"role": "assistant", "content": answer}]
        return answer

    def listen(self) -> None:
        """Answer lines of the input until it ends, or until /quit."""
        talk("/reset: forget the conversation   /adapter NAME: switch (base: no adapter)   /quit: end")
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
                self.answer(line)

    def command(self, line: str) -> None:
        """Obey /reset or /adapter NAME; for anything else list the commands."""
        word, _, name = line.partition(" ")
        if word == "/reset":
            self.messages.clear()
            talk("forgotten")
        elif word == "/adapter" and (name == "base" or name in self.base.adapters):
            self.adapter = None if name == "base" else name
            talk(f"{name} answers")
        else:
            names = " | ".join(["base", *self.base.adapters])
            talk(f"unknown command {line}: write /reset, /adapter {names}, /quit")


def classified(base: Any, adapter: str, text: str) -> str:
    """Return what an adapter's task head says of a text: the likeliest classes, or the words with their tags.

    The classes have the names that the rows gave them.
    """
    from graft.evaluate.answers import predictions  # late, as in `chat`
    from graft.planning.fit import require_tokenizer

    require_tokenizer(base.tokenizer, base.name, base.vocabulary)
    (said,) = predictions(base, [text], [adapter])
    if not said.probabilities:
        return said.answer
    likeliest = sorted(said.probabilities.items(), key=lambda item: -item[1])[:LIKELIEST]
    (best, chance), *others = likeliest
    beside = ", ".join(f"{name} {share:.1%}" for name, share in others)
    return f"{best}   {chance:.1%}" + (f"   ({beside})" if beside else "")
