"""Trained parameters of every method on published shapes, exactly, next to the papers' rounded figures.

The shapes are without storage. Rows are those of the papers and of arithmetic by hand: L blocks of width d,
feed-forward width f, rank r.
"""

import pytest
import torch
from published import (
    attached,
    bert_base,
    gpt3,
    llama_2_7b,
    llama_13b,
    llama_33b,
    llama_65b,
    roberta_base,
    roberta_large,
    roberta_words,
    t0_3b,
    t5_base,
)

from graft.core.registry import names
from graft.layers.task_subspace import AutoEncoder
from graft.methods.adalora import AdaLoRA
from graft.methods.adamix import AdaMix
from graft.methods.adapter_fusion import AdapterFusion
from graft.methods.attention_fusion import AttentionFusion
from graft.methods.bitfit import BitFit
from graft.methods.boft import BOFT
from graft.methods.compacter import Compacter
from graft.methods.full import Full
from graft.methods.houlsby import Houlsby
from graft.methods.ia3 import IA3
from graft.methods.ipt import IPT
from graft.methods.krona import KronA
from graft.methods.krona_b import KronAB
from graft.methods.ladder import Ladder
from graft.methods.lets import LeTS
from graft.methods.ln_tuning import LNTuning
from graft.methods.loha import LoHa
from graft.methods.lokr import LoKr
from graft.methods.lora import LoRA
from graft.methods.oft import OFT
from graft.methods.p_tuning import PTuning
from graft.methods.parallel import Parallel
from graft.methods.pfeiffer import Pfeiffer
from graft.methods.prefix import PrefixTuning
from graft.methods.prompt import PromptTuning
from graft.methods.qa_lora import QALoRA
from graft.methods.subset import Subset
from graft.methods.task_head import TaskHead
from graft.methods.trainable_tokens import TrainableTokens
from graft.methods.vera import VeRA
from graft.methods.warp import WARP

Q_V = ("q_proj", "v_proj")
OF_BERT = ("query", "value")
L, D, F = 32, 4096, 11008  # Llama-2-7B
TABLE = [
    # selective
    (llama_2_7b, Full(), 6_738_415_616, "all"),
    (llama_2_7b, Subset(top_layers=2), 404_770_816, "2 (4d² + 3df + 2d) + d"),
    (bert_base, BitFit(), 102_912, "0.09 %, Ben Zaken et al., table 1"),
    (llama_2_7b, BitFit(), L * (5 * D + 2 * F), "it has no biases: one for every linear is added"),
    (bert_base, LNTuning(), 38_400, "25 norms, gain and bias"),
    (llama_2_7b, LNTuning(), 266_240, "65 norms, gain only"),
    (llama_2_7b, TrainableTokens(token_indices=(31_998, 31_999)), 2 * D, "k d"),
    (t5_base, TrainableTokens(token_indices=(32_099,)), 768, "once, though the head is tied"),
    (roberta_base, TaskHead(num_labels=2), 2 * 768 + 2, "a head is counted apart from its method"),
    # low-rank and its kin
    (gpt3, LoRA(r=1, target_modules=Q_V), 4_718_592, "4.7 M, Hu et al., table 4"),
    (
        gpt3,
        LoRA(r=4, target_modules=Q_V),
        18_874_368,
        "18.9 M; 1 / 9,285 of the model: 10,000 is the paper's rounding",
    ),
    (gpt3, LoRA(r=8, target_modules=Q_V), 37_748_736, "37.7 M"),
    (roberta_base, LoRA(r=8, target_modules=OF_BERT), 294_912, "0.3 M, Hu et al., table 2"),
    (roberta_large, LoRA(r=8, target_modules=OF_BERT), 786_432, "0.8 M"),
    (llama_2_7b, LoRA(r=8, target_modules=Q_V), 4_194_304, "Σ r (d_in + d_out)"),
    (llama_2_7b, LoRA(r=16), 39_976_960, "all linears"),
    (llama_2_7b, LoRA(r=64), 159_907_840, "160 M, Xu et al. (QA-LoRA), table 1"),
    (llama_2_7b, QALoRA(), 89_309_184, "89 M, Xu et al., table 1: Σ r (d_in / 32 + d_out), r = 64"),
    (llama_13b, QALoRA(), 139_878_400, "140 M"),
    (llama_33b, QALoRA(), 272_363_520, "272 M"),
    (llama_65b, QALoRA(), 446_545_920, "447 M"),
    (llama_2_7b, LoRA(r=16, use_dora=True), 39_976_960 + 1_359_872, "+ Σ d_out"),
    (llama_2_7b, LoRA(r=8, use_dora=True, target_modules=Q_V), 4_194_304 + 262_144, "+ Σ d_out"),
    (llama_2_7b, AdaLoRA(init_r=12, target_modules=Q_V), 6_292_224, "Σ r (d_in + d_out + 1)"),
    (llama_2_7b, VeRA(r=256, target_modules=Q_V), 278_528, "Σ (r + d_out)"),
    (llama_2_7b, LoHa(r=8, target_modules=Q_V), 8_388_608, "Σ 2 r (d_in + d_out)"),
    (llama_2_7b, LoKr(r=8, target_modules=Q_V), 327_680, "64·64 + r (64 + 64) each"),
    (llama_2_7b, KronA(target_modules=Q_V), 524_288, "64·64 + 64·64 each"),
    (llama_2_7b, OFT(target_modules=Q_V), 4_063_232, "Σ (d_in / b) b (b − 1) / 2, b = 32"),
    (llama_2_7b, BOFT(target_modules=Q_V), 1_310_720, "Σ (d_in / b) b² + d_out, b = 4"),
    (llama_2_7b, IA3(), 614_400, "L (2 d + f)"),
    (t0_3b, IA3(), 540_672, "Liu et al.: 0.54 M"),
    # bottlenecks
    (bert_base, Houlsby(m=64, train_norms=False), 2_379_264, "2 L (2 d m + m + d)"),
    (bert_base, Houlsby(m=64), 2_379_264 + 38_400, "with the norms, as the paper trains"),
    (llama_2_7b, Houlsby(m=256, train_norms=False), 134_496_256, "2 L (2 d m + m + d)"),
    (t5_base, Houlsby(m=24), 1_855_104, "0.832 %, Mahabadi et al., table 1"),
    (bert_base, Pfeiffer(), 894_528, "0.9 M, L (2 d m + m + d)"),
    (llama_2_7b, Pfeiffer(m=256), 67_248_128, "L (2 d m + m + d)"),
    (bert_base, Parallel(), 7_091_712, "m = 384"),
    (llama_2_7b, Parallel(reduction_factor=16), 67_248_128, "L (2 d m + m + d)"),
    (t5_base, Pfeiffer(m=24, train_norms=True), 951_360, "0.427 %, Mahabadi et al., table 1"),
    (t5_base, Compacter(), 161_728, "0.073 %, Mahabadi et al., table 1"),
    (t5_base, Compacter(mh_adapter=False), 104_704, "Compacter++: 0.047 %"),
    (llama_2_7b, Compacter(m=256, train_norms=False), 835_648, "2 L (2 (d + m) + m + d) + n³"),
    (t5_base, KronAB(), 24 * 1_536, "32·24 + 24·32 a block"),
    (t5_base, KronAB(residual=True), 24 * 1_537, "and one s_res"),
    (llama_2_7b, AdaMix(m=16), 10_618_880, "L (E (d m + m) + m d + d), E = 4"),
    (llama_2_7b, AdaMix(m=16).hosted(), 4_325_888, "what stays of it"),
    (bert_base, AdaMix(m=48).hosted(), 894_528, "0.9 M, Wang et al., table 2"),
    (roberta_large, AdaMix(m=16).hosted(), 811_392, "0.8 M, Wang et al., table 1"),
    (
        bert_base,
        AdapterFusion(),
        12 * (3 * 768**2 + 2 * 768),
        "21.2 M: 3 d² a block; the biases of Q and K are 18,432",
    ),
    (llama_2_7b, AdapterFusion(value=False), L * (2 * D**2 + 2 * D), "static: without V"),
    # soft prompts
    (llama_2_7b, PromptTuning(num_virtual_tokens=20), 81_920, "p d"),
    (llama_2_7b, PromptTuning(num_virtual_tokens=100), 409_600, "p d"),
    (
        llama_2_7b,
        PTuning.files.understand(PTuning, {"num_virtual_tokens": 20}),
        81_920,
        "what stays of a P-tuning",
    ),
    (bert_base, PrefixTuning(num_virtual_tokens=30), 552_960, "2 L p d"),
    (llama_2_7b, PrefixTuning(num_virtual_tokens=30), 7_864_320, "2 L p d"),
    (
        llama_2_7b,
        PrefixTuning(num_virtual_tokens=30, prefix_projection=True),
        136_700_416,
        "p d + (d + 1) 512 + 513 · 2 L d; left behind",
    ),
    (
        llama_2_7b,
        PTuning(num_virtual_tokens=20),
        20 * D + 3 * (D + 1) * D,
        "with the encoder, which is left behind",
    ),
    (roberta_words, WARP(num_labels=2), (20 + 2) * 1024, "K d + C d"),
    (
        bert_base,
        IPT(num_virtual_tokens=100, intrinsic_dim=250, hidden_size=8),
        250,
        "d_I, whatever the decoder",
    ),
    # side networks
    (bert_base, AttentionFusion(), 781, "d + L + 1: 0.0007 %; Cao et al. say 0.0009 % of the model"),
    (llama_2_7b, AttentionFusion(), 4_129, "d + L + 1"),
    (llama_2_7b, Ladder(), 172_545_056, "L blocks of d/8 and f/8, L + 1 D_l, U, a norm, L gates"),
    (llama_2_7b, Ladder(layers=tuple(range(1, 32, 2))), 88_372_240, "the same with half of the blocks"),
    (t5_base, Ladder(layers=(1, 2, 3, 5, 6, 7, 9, 10, 11)), 3_878_706, "1.74 %, Sung et al., table 1"),
    (
        bert_base,
        LeTS(num_labels=2, delta_layers=0),
        1_478_415,
        "2.5 d² + 4 d + 13 gates + (d/2 + 1) · 2: 1.35 %",
    ),
    (bert_base, LeTS(), 1_549_191, "and half a per cent of the last two blocks: 1.4 %, Fu et al."),
]


@pytest.mark.parametrize(
    ("make", "method", "count", "formula"), TABLE, ids=lambda v: getattr(v, "__name__", None)
)
def test_counts(make, method, count, formula):
    assert attached(make, method).count() == count, formula


def test_every_method_stands_in_the_table():
    assert set(names()) == {method.name() for _, method, _, _ in TABLE}


def test_the_auto_encoder_behind_250_intrinsic_dimensions():
    with torch.device("meta"):
        coder = AutoEncoder(100 * 768, 250, 768)
    assert sum(p.numel() for p in coder.parameters()) == 78_452_218  # 78 M, Qin et al.
