import torch

from graft.methods.lora import LoRA
from graft.models.load import load
from models import randomise


def test_a_method_that_reads_weights_at_its_birth_loads_onto_packed_ones(tmp_path):
    """DoRA's norms are made of the weights, which are decoded with nested constants here."""
    base = load("seedling", quant="nf4", dtype="fp32")
    randomise(base.attach("kept", LoRA(r=2, use_dora=True)))
    base.adapters["kept"].save(tmp_path)
    ids = torch.arange(4, 12)[None]
    with torch.no_grad():
        wanted = base(ids, adapters=["kept"]).logits
        base.load_adapter(tmp_path, "loaded")
        assert torch.equal(base(ids, adapters=["loaded"]).logits, wanted)
