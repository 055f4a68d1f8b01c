"""Write how to serve an export: a Modelfile for Ollama, and a card with the commands of others.

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
from graft.errors import notice
from graft.generate.prompts import end_tokens
from graft.shipping import provenance
from graft.shipping.card import Use, write_card
from graft.shipping.origin import Origin

if TYPE_CHECKING:
    from graft.base.base import Base

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes for --max-lora-rank
CONTENT = "\ue0f0{}\ue0f1"  # private-use characters, as in graft.data.templates
BESIDE = "In the folder above this one"  # where commands run
NO_TEMPLATE = (
    "Ollama's templates cannot express the chat template of this model: unless Ollama knows this kind of "
    "model, chats reach it as plain text. llama-server and vLLM use the template as it is."
)


def ends(base: "Base") -> list[int]:
    """Return the tokens that end a text: the tokenizer's own, then the model's and the template's."""
    tokenizer = base.tokenizer
    tokens = end_tokens(base, chat=bool(tokenizer.chat_template))
    return sorted(tokens, key=lambda token: token != tokenizer.eos_token_id)


def write_modelfile(
    base: "Base", folder: Path, model: str, adapter: str | None = None, *, file: str = "Modelfile"
) -> list[str]:
    """Write what `ollama create NAME -f Modelfile` reads; return notes for the card, which are told, too.

    model, adapter: paths as seen from the Modelfile.
    """
    lines = [f"FROM {model}", *([f"ADAPTER {adapter}"] if adapter else [])]
    template = go_template(base.tokenizer) if base.tokenizer.chat_template else "{{ .Prompt }}"
    if template is not None:
        lines.append(f'TEMPLATE """{template}"""')
    words = [base.tokenizer.convert_ids_to_tokens(token) for token in ends(base)]
    lines += [f"PARAMETER stop {json.dumps(word, ensure_ascii=False)}" for word in words]
    context = context_length(base.model.config)
    lines += [f"PARAMETER num_ctx {context}"] if context else []
    (folder / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [] if template is not None else [NO_TEMPLATE]


def vllm(model: str, *, tokenizer: str | None = None, lora: tuple[str, str, int] | None = None) -> str:
    """Return the command that serves a folder, a GGUF file with its tokenizer, or a base with a LoRA.

    lora: (name, folder, rank).
    """
    words = ["vllm serve", model, *([f"--tokenizer {tokenizer}"] if tokenizer else [])]
    if lora:
        name, folder, r = lora
        words.append(f"--enable-lora --lora-modules {name}={folder} --max-lora-rank {vllm_rank(r)}")
    return " ".join(words)


def vllm_rank(r: int) -> int:
    """Return the smallest number for --max-lora-rank that vLLM takes and that holds this rank."""
    return next((size for size in RANKS if size >= r), r)


def write_model(base: "Base", folder: Path, name: str, origin: Origin | None = None) -> None:
    """Write the card of a Hugging Face folder that will be called `name`, and the Modelfile of a decoder."""
    uses, notes = [Use("Use", _transformers(base, name), "python")], list[str]()
    if base.family == "causal" and base.tokenizer is not None:
        notes = write_modelfile(base, folder, ".")
        uses.append(Use("Serve", f"# {BESIDE}:\n{vllm(f'./{name}')}\n# In this folder:\n{_ollama()}"))
    summary = (
        f"A model made from `{provenance.public_name(base)}`, with all adapters merged into its weights."
    )
    about: dict[str, Any] = {"library": "transformers", "relation": "finetune", "origin": origin}
    write_card(base, folder, name, summary, uses, notes=notes, **about)


def write_packed(base: "Base", folder: Path, name: str, origin: Origin | None = None) -> None:
    """Write the card of a folder in a format that Ollama does not read."""
    uses = [Use("Use", _transformers(base, name), "python")]
    if base.family == "causal" and base.tokenizer is not None:
        uses.append(Use("Serve", f"# {BESIDE}:\n{vllm(f'./{name}')}"))
    summary = f"A model made from `{provenance.public_name(base)}`, in few bits a weight."
    about: dict[str, Any] = {"library": "transformers", "relation": "quantized", "origin": origin}
    write_card(base, folder, name, summary, uses, **about)


def write_gguf(base: "Base", folder: Path, file: str, origin: Origin | None = None) -> None:
    """Write the card and the Modelfile of a GGUF file in the folder."""
    notes = write_modelfile(base, folder, f"./{file}")
    for note in notes:
        notice(note)
    commands = [f"llama-server -m {file}", _ollama(), vllm(f"./{file}", tokenizer=tokenizer_place(base))]
    uses = [Use("Serve", "# In this folder, any of:\n" + "\n".join(commands))]
    summary = f"A GGUF file made from `{provenance.public_name(base)}`."
    about: dict[str, Any] = {"library": "gguf", "relation": "quantized", "tags": ["gguf"], "origin": origin}
    write_card(base, folder, file, summary, uses, notes=notes, **about)


def write_lora(base: "Base", folder: Path, file: str, model: str, origin: Origin | None = None) -> None:
    """Write the card and the Modelfile of a GGUF adapter, to be used with the file of its base."""
    notes = write_modelfile(base, folder, f"./{model}", f"./{file}")
    for note in notes:
        notice(note)
    commands = [f"llama-server -m {model} --lora {file}", _ollama()]
    uses = [Use("Serve", "# In this folder, any of:\n" + "\n".join(commands))]
    notes.append(f"`{model}` is the base as a GGUF file, which is not in this folder.")
    summary = f"A GGUF adapter for `{provenance.public_name(base)}`."
    about: dict[str, Any] = {
        "library": "gguf",
        "relation": "adapter",
        "tags": ["gguf", "lora"],
        "origin": origin,
    }
    write_card(base, folder, file, summary, uses, notes=notes, **about)


def tokenizer_place(base: "Base") -> str:
    """Return the word for a base that other tools load: a hub id, or a folder that one has to fill in."""
    known = provenance.hub_id(base)
    return known or f"PATH_TO/{provenance.last_name(base.name)}"


def place_here(base: "Base") -> str:
    """Return the word for a base in a command of this machine; other tools do not know the embedded one."""
    return tokenizer_place(base) if base.name == provenance.EMBEDDED else base.name


def _ollama() -> str:
    return "ollama create NAME -f Modelfile"


def _transformers(base: "Base", name: str) -> str:
    """Return the lines that load a folder in transformers."""
    cls = {"causal": "AutoModelForCausalLM", "masked": "AutoModelForMaskedLM"}
    auto = cls.get(base.family, "AutoModelForSeq2SeqLM" if base.family == "seq2seq" else "AutoModel")
    lines = [
        f"# {BESIDE}:",
        f"from transformers import {auto}, AutoTokenizer",
        f'model = {auto}.from_pretrained("./{name}")',
    ]
    lines += [f'tokenizer = AutoTokenizer.from_pretrained("./{name}")'] if base.tokenizer is not None else []
    return "\n".join(lines)


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
