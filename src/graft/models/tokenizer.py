"""Load tokenizers from a folder or a GGUF file, never with code from the folder."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.models.auto.tokenization_auto import AutoTokenizer

from graft import storage
from graft.errors import ModelError
from graft.formats import gguf_file
from graft.models.files import first_line
from graft.models.tokenizer_files import panicked, require_plausible

# A folder with none of these holds no tokenizer.
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
WEIGHTS = (".safetensors", ".gguf")  # files of a folder that no tokenizer reads


def tokenizer_in(folder: str | Path) -> Any:
    """Return the tokenizer of a folder or a GGUF file (None where the file has none). Raises ModelError."""
    folder = Path(folder)
    if not folder.is_file():
        storage.require_unchanged(folder, ModelError, lambda name: not name.endswith(WEIGHTS))
    if folder.is_dir():
        require_plausible(folder)
    try:
        if folder.is_file():
            return gguf_file.tokenizer(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        tokenizer("a b")  # some break down at their first text
        return tokenizer
    except BaseException as error:  # each tokenizer class fails in its own way, some for want of a library
        if not (isinstance(error, Exception) or panicked(error)):
            raise
        raise ModelError(
            f"the tokenizer of {folder} cannot be read ({first_line(error)})",
            "a folder with tokenizer.json and tokenizer_config.json",
            "check the path, or download the tokenizer again",
        ) from error


def has_tokenizer(folder: Path) -> bool:
    """Return whether a model's folder holds a tokenizer; a GGUF file may."""
    return folder.is_file() or any((folder / file).exists() for file in TOKENIZERS)


def tokenizer_of(folder: Path, model: PreTrainedModel) -> Any:
    """Return the tokenizer in a model's folder, or None; make sure its pad token has an embedding."""
    if not has_tokenizer(folder):
        return None
    tokenizer = tokenizer_in(folder)
    if tokenizer is None:
        return None
    table: Any = model.get_input_embeddings()
    rows = table.weight.shape[0]
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= rows:
        # Any token will do: masks are ours, so padding never counts. It only must not need a new embedding.
        ids = [tokenizer.unk_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, 0]
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(
            next(i for i in ids if i is not None and i < rows)
        )
    return tokenizer
