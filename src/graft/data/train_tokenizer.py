"""Train a byte-level BPE tokenizer on texts.

Text is split as GPT-2 splits it (words with their leading space, numbers, punctuation, white space); digits
stand alone; each piece is written in UTF-8 bytes. All 256 bytes are in the vocabulary, so every text can be
encoded and comes back unchanged. The most frequent neighbours are joined until the vocabulary is full.
Sennrich et al. 2016, arXiv 1508.07909; bytes as in Radford et al. 2019, "Language Models are Unsupervised
Multitask Learners", §2.2.
"""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from graft.errors import DataError, UsageError

PAD, BOS, EOS = SPECIAL = ("<pad>", "<bos>", "<eos>")
SMALLEST = 256 + len(SPECIAL)


def train_bpe(texts: Iterable[str], vocab_size: int, *, max_length: int = 512) -> PreTrainedTokenizerFast:
    """Train a tokenizer of `vocab_size` entries, or of fewer if the texts have fewer pairs to join.

    Encoding begins with <bos>; <eos> ends a document and is added by the caller.  max_length: positions of
    the model.
    Raises UsageError for a vocabulary that cannot hold all bytes, DataError if there is no text.
    """
    if vocab_size < SMALLEST:
        raise UsageError(
            f"vocab_size={vocab_size}",
            f"at least {SMALLEST}: 256 bytes and {len(SPECIAL)} special tokens",
            "raise it; 2048 is usual",
        )
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    any_text = False

    def watched() -> Iterable[str]:
        nonlocal any_text
        for text in texts:
            any_text = any_text or bool(text)
            yield text

    core.train_from_iterator(watched(), trainer)
    if not any_text:
        raise DataError(
            "the tokenizer was given no text", "at least one document that is not empty", "check data.train"
        )
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, core.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,  # cleaning would remove spaces before punctuation when decoding
    )
