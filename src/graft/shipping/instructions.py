"""Write how to serve an export: a Modelfile for Ollama, and the commands of llama.cpp and vLLM.

Ollama renders chats by templates in Go. We find one by rendering ours: a Jinja template that writes

    before + content + after      for each role, the same in every turn

can be written in Go. For any other, Ollama has to recognise the kind of model from the file.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.core.positions import context_length
from graft.data.rows import BadRow
from graft.data.templates import Template, affixes, source
from graft.generate.prompts import end_tokens

if TYPE_CHECKING:
    from graft.base.base import Base

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes for --max-lora-rank
CONTENT = "\ue0f0{}\ue0f1"  # private-use characters, as in graft.data.templates


def ends(base: "Base") -> list[int]:
    """Return the tokens that end a text: the tokenizer's own, then the model's and the template's."""
    tokenizer = base.tokenizer
    tokens = end_tokens(base, chat=bool(tokenizer.chat_template))
    return sorted(tokens, key=lambda token: token != tokenizer.eos_token_id)


def modelfile(base: "Base", model: str, adapter: str | None = None) -> str:
    """Return what `ollama create NAME -f Modelfile` reads.

    model, adapter: paths as seen from the Modelfile.
    """
    lines = [f"FROM {model}", *([f"ADAPTER {adapter}"] if adapter else [])]
    template = go_template(base.tokenizer) if base.tokenizer.chat_template else "{{ .Prompt }}"
    if template is not None:
        lines.append(f'TEMPLATE """{template}"""')
    words = [base.tokenizer.convert_ids_to_tokens(token) for token in ends(base)]
    lines += [f"PARAMETER stop {json.dumps(word, ensure_ascii=False)}" for word in words]
    context = context_length(base.model.config)
    return "\n".join([*lines, *([f"PARAMETER num_ctx {context}"] if context else [])]) + "\n"


def vllm(model: str, *, tokenizer: str | None = None, lora: tuple[str, str, int] | None = None) -> str:
    """Return the command that serves a folder, a GGUF file with its tokenizer, or a base with a LoRA.

    lora: (name, folder, rank).
    """
    words = ["vllm serve", model, *([f"--tokenizer {tokenizer}"] if tokenizer else [])]
    if lora:
        name, folder, r = lora
        rank = next((size for size in RANKS if size >= r), r)
        words.append(f"--enable-lora --lora-modules {name}={folder} --max-lora-rank {rank}")
    return " ".join(words)


def write_model(base: "Base", folder: Path, name: str) -> None:
    """Write the instructions for a Hugging Face folder that will be called `name`."""
    write(base, folder, name, ["ollama create NAME -f Modelfile", vllm(name)], modelfile(base, "."))


def write_packed(base: "Base", folder: Path, name: str) -> None:
    """Write the instructions for a folder in a format that Ollama does not read."""
    _readme(base, folder, name, [vllm(name)])


def write_gguf(base: "Base", folder: Path, file: str) -> None:
    """Write the instructions for a GGUF file in the folder."""
    lines = [f"llama-server -m {file}", "ollama create NAME -f Modelfile", vllm(file, tokenizer=base.name)]
    write(base, folder, file, lines, modelfile(base, f"./{file}"))


def write_lora(base: "Base", folder: Path, file: str, model: str) -> None:
    """Write the instructions for a GGUF adapter in the folder, to be used with the file of its base."""
    lines = [f"llama-server -m {model} --lora {file}", "ollama create NAME -f Modelfile"]
    write(base, folder, f"{file} for {model}", lines, modelfile(base, f"./{model}", f"./{file}"))


def write(base: "Base", folder: Path, what: str, commands: list[str], modelfile: str) -> None:
    """Write the Modelfile, and a README.md with the commands that serve `what`."""
    (folder / "Modelfile").write_text(modelfile, encoding="utf-8")
    _readme(base, folder, what, commands)


def _readme(base: "Base", folder: Path, what: str, commands: list[str]) -> None:
    shown = "\n".join(f"    {command}" for command in commands)
    text = f"# {what}\n\nMade from `{base.name}`. Served by any of\n\n{shown}\n"
    (folder / "README.md").write_text(text, encoding="utf-8")


def go_template(tokenizer: Any) -> str | None:
    """Return the chat template in Go, as Ollama reads it; None if it is not regular (see above)."""
    try:
        parts = _parts(Template(tokenizer, source(tokenizer)), affixes(tokenizer)[0], tokenizer)
    except BadRow:  # a template that will not take one of our conversations
        return None
    if parts is None or any("{{" in text or '"""' in text for pair in parts.values() for text in pair):
        return None
    turns = [
        f'if eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
        for role, (before, after) in parts.items()
    ]
    return "{{ range .Messages }}{{ " + "{{ else ".join(turns) + "{{ end }}{{ end }}"


def _parts(template: Template, front: list[int], tokenizer: Any) -> dict[str, tuple[str, str]] | None:
    """Return {role: (before, after)}; the prompt for an answer belongs to the user's turn."""
    start = tokenizer.decode(front)  # put there by the server too

    def render(*roles: str) -> str:
        messages = [{"role": role, "content": CONTENT.format(i)} for i, role in enumerate(roles)]
        return template.render(messages, ask=True).removeprefix(start)

    chat = render("user", "assistant", "user")
    before, rest = chat.split(CONTENT.format(0))
    after, rest = rest.split(CONTENT.format(1))
    between, last = rest.split(CONTENT.format(2))
    if after != last or not between.endswith(before):
        return None
    parts = {"user": (before, after), "assistant": ("", between.removesuffix(before))}
    try:
        first, rest = render("system", "user").split(CONTENT.format(0))
    except (BadRow, ValueError):  # it knows no system role, or writes its content elsewhere
        return parts
    middle, last = rest.split(CONTENT.format(1))
    regular = middle.endswith(before) and last == after
    return parts | {"system": (first, middle.removesuffix(before))} if regular else None
