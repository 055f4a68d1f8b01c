"""Blocks of BERT, RoBERTa, Llama and T5 by hand, with functions at the places of the `adapters` library.

`rewired(model, added)` returns a copy of a model. In it added[number of the block, kind](h, r, norm)
computes the end of a sublayer: h is the output of its last projection, r the residual, norm the block's own
layer norm after their sum (the identity on pre-norm blocks). The number runs through encoder and decoder.
Nothing of Graft is used.
"""

import copy
from functools import partial


def plain_end(h, r, norm):
    """End a sublayer as the model does without an adapter."""
    return norm(h + r)


def no_norm(u):
    """Stand for the norm after the sum where a pre-norm block has none."""
    return u


def rewired(model, added):
    """Return a copy of the model with these functions at the ends of its sublayers."""
    model = copy.deepcopy(model)
    for number, block in enumerate(blocks(model)):
        if hasattr(block, "mlp"):
            block.forward = partial(llama_block, block, added, number)
            continue
        for kind, module in sublayers(block).items():
            module.forward = partial(
                FORWARDS[kind, hasattr(module, "dense")], module, added.get((number, kind), plain_end)
            )
    return model


def blocks(model):
    """Return the blocks in the library's order: the encoder's, then the decoder's."""
    base = model.base_model
    if hasattr(base, "decoder"):
        return [*base.encoder.block, *base.decoder.block]
    return list(base.encoder.layer if hasattr(base, "encoder") else base.layers)


def sublayers(block):
    """Return, by kind of sublayer, the module whose forward ends with the sum."""
    if hasattr(block, "intermediate"):
        return {"attention": block.attention.output, "mlp": block.output}
    return dict(
        zip(("attention", "cross", "mlp")[:: 1 if len(block.layer) == 3 else 2], block.layer, strict=True)
    )


def llama_block(self, added, number, hidden_states, **keywords):
    attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **keywords)
    middle = added.get((number, "attention"), plain_end)(attended, hidden_states, no_norm)
    return added.get((number, "mlp"), plain_end)(
        self.mlp(self.post_attention_layernorm(middle)), middle, no_norm
    )


def bert_output(self, end, hidden_states, input_tensor):
    return end(self.dense(hidden_states), input_tensor, self.LayerNorm)


def t5_feedforward(self, end, hidden_states):
    return end(self.DenseReluDense(self.layer_norm(hidden_states)), hidden_states, no_norm)


def t5_attention(self, end, hidden_states, attention_mask=None, **keywords):
    attention = self.SelfAttention if hasattr(self, "SelfAttention") else self.EncDecAttention
    attended, *rest = attention(self.layer_norm(hidden_states), mask=attention_mask, **keywords)
    return end(attended, hidden_states, no_norm), *rest


FORWARDS = {  # kind, BERT or not
    ("attention", True): bert_output,
    ("mlp", True): bert_output,
    ("attention", False): t5_attention,
    ("cross", False): t5_attention,
    ("mlp", False): t5_feedforward,
}
