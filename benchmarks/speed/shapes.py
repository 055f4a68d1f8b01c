"""Shapes of Llama models, and what a step of them costs at least: operations, memory, bytes read.

A tied head is counted once in memory and once in operations. T tokens stand in rows of t tokens.
"""

from dataclasses import dataclass
from typing import Any

NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)  # bytes of a weight: a code, an 8-bit maximum for 64, its share of fp32
BF16 = 2
ADAPTER = 16  # bytes of an adapter's weight in fp32 with gradient and AdamW's moments


@dataclass(frozen=True)
class Shape:
    """d: width.  f: width of the gated MLP."""

    name: str
    d: int
    f: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int = 32000
    tied: bool = False

    @property
    def d_kv(self) -> int:
        """The width of keys and values."""
        return self.d // self.heads * self.kv_heads

    def block(self) -> dict[str, tuple[int, int]]:
        """Return the linears of a block, (out, in) by their name in the file."""
        d, f, d_kv = self.d, self.f, self.d_kv
        return {
            "self_attn.q_proj": (d, d), "self_attn.k_proj": (d_kv, d), "self_attn.v_proj": (d_kv, d),
            "self_attn.o_proj": (d, d), "mlp.gate_proj": (f, d), "mlp.up_proj": (f, d),
            "mlp.down_proj": (d, f),
        }  # fmt: skip

    @property
    def linear(self) -> int:
        """The weights of all linears of the blocks."""
        return self.layers * sum(out * width for out, width in self.block().values())

    @property
    def head(self) -> int:
        """The weights of the head."""
        return self.d * self.vocabulary

    @property
    def tables(self) -> int:
        """The weights of embedding and head together."""
        return self.head * (1 if self.tied else 2)

    def lora(self, r: int) -> int:
        """Return the weights of LoRA of this rank on all linears of the blocks."""
        return self.layers * r * sum(out + width for out, width in self.block().values())

    def flops(self, length: int, r: int, *, full: bool = False) -> float:
        """Return the operations that one token of a training step needs, without recomputation.

        A frozen weight costs 2 forward and 2 for the gradient of its input, a trained one 2 more. Causal
        attention costs 2·t·d a layer forward, and 2.5 times that backward.
        """
        attention = 3.5 * 2 * length * self.d * self.layers
        frozen = self.linear + self.head
        return (6 * frozen if full else 4 * frozen + 6 * self.lora(r)) + attention

    def training_bytes(self, tokens: int, r: int) -> float:
        """Return the least peak memory of a QLoRA step that keeps its activations, with tiled logits.

        NF4 with double quantisation, tables and activations in bf16, the adapter with AdamW in fp32.
        """
        kept = 2 * (4 * self.d + 2 * self.d_kv + 2 * self.f) + 4 * self.heads  # a token's, in a layer
        return self.packed_bytes + ADAPTER * self.lora(r) + kept * self.layers * tokens

    @property
    def packed_bytes(self) -> float:
        """The bytes of the model in NF4 with double quantisation, tables in bf16."""
        return NF4 * self.linear + BF16 * self.tables

    @property
    def largest_bytes(self) -> int:
        """The bytes of the largest tensor of the file."""
        return BF16 * max(self.head, self.d * self.f)

    @property
    def decoding_bytes(self) -> float:
        """The bytes that a token of one row must read: NF4 weights and a bf16 head, without the cache."""
        return NF4 * self.linear + BF16 * self.head

    @property
    def file_bytes(self) -> int:
        """The bytes of the model in bf16."""
        return BF16 * (self.linear + self.tables + (2 * self.layers + 1) * self.d)

    def config(self) -> dict[str, Any]:
        """Return the config.json of a model in bf16 that no token ends."""
        return {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": self.d,
            "intermediate_size": self.f, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary, "tie_word_embeddings": self.tied, "hidden_act": "silu",
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "dtype": "bfloat16",
            "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
        }  # fmt: skip


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", 64, 128, 2, 4, 2, vocabulary=512),  # for tests of the harness
        Shape("15m", 288, 768, 6, 6, 6, tied=True),
        Shape("160m", 768, 2048, 12, 12, 12),
        Shape("1.1b", 2048, 5632, 22, 32, 4),
        Shape("7b", 4096, 11008, 32, 32, 32),
    )
}
