"""The rows of the benchmark as plain data: which work, and whose sides do it in turn.

A side is "graft" or a peer. For training, "shipped" is PEFT + bitsandbytes as their documents show it, and
"tuned" the same with the settings that are fastest on this machine. Ratios are against the first side.
"""

from dataclasses import dataclass, field, replace
from typing import Any

OURS = "graft"
BEFORE = "graft before"  # an older checkout, by `--before`
PEERS = ("shipped", "tuned")


@dataclass(frozen=True)
class Row:
    """kind: the work: train, load, optimizer, decode or demo.

    sides: by name, with the settings in which a side differs.  work: settings that all share.
    turn: units of work (steps, loads, texts) that a side does at a time.  rounds: turns of each side.
    goals: the least ratio by side.  share: the least share of the machine's own limit, a product rate or a
    bandwidth.  lasting: a side is one process for all turns, and not a fresh one for each.
    rate: the least rate of the first side, where there is no peer.
    tries: rounds are begun at most so many times as often as are needed, where others disturb them.
    """

    name: str
    title: str
    kind: str
    shape: str
    sides: dict[str, dict[str, Any]]
    work: dict[str, Any] = field(default_factory=dict)
    turn: int = 2
    rounds: int = 5
    warm: int = 2
    goals: dict[str, float] = field(default_factory=dict)
    share: float | None = None
    rate: float | None = None
    lasting: bool = True
    tries: int = 3

    def quick(self) -> "Row":
        """Return the same with as few steps as show that it runs."""
        return replace(self, turn=1, rounds=2, warm=min(self.warm, 1), tries=1)

    def beside(self) -> "Row":
        """Return the same with an older checkout of graft at its side."""
        return replace(self, sides=self.sides | {BEFORE: self.sides[OURS]}) if OURS in self.sides else self


def _train(
    shape: str, length: int, *, method: str = "lora", quant: str = "none", dtype: str = "auto",
    title: str = "", name: str = "", goals: tuple[float, ...] = (), share: float | None = None,
    peers: tuple[str, ...] = PEERS, **more: Any,
) -> Row:  # fmt: skip
    """Return a row of training steps.  dtype: what the user asks for; "auto" leaves it to each side."""
    word = "qlora" if quant != "none" else method
    optimizer = "adamw_8bit" if method == "full" else "adamw"
    return Row(
        name or f"{word}-{shape}-{length}" + ("" if dtype == "auto" else f"-{dtype}"),
        title or f"{ {'qlora': 'QLoRA', 'lora': 'LoRA', 'full': 'full'}[word]} {shape.upper()}, T={length}"
        + ("" if dtype == "auto" else f", {dtype}"),
        "train", shape, {OURS: {}, **{peer: {} for peer in peers}},
        {"length": length, "method": method, "quant": quant, "dtype": dtype, "optimizer": optimizer},
        goals=dict(zip(peers, goals, strict=False)), share=share, **more,
    )  # fmt: skip


def _load(shape: str, rounds: int) -> Row:
    return Row(
        f"load-{shape}", f"load + quantise {shape.upper()}", "load", shape, {OURS: {}, "shipped": {}},
        {"quant": "nf4"}, turn=1, rounds=rounds, warm=0, goals={"shipped": 20.0}, lasting=False,
    )  # fmt: skip


def _decode(shape: str, new: int) -> Row:
    return Row(
        f"decode-{shape}", f"decode {shape.upper()} NF4, one row", "decode", shape,
        {OURS: {"quant": "nf4"}, "graft, exact": {"quant": "nf4", "exact": True},
         "transformers": {"dtype": "bf16"}, "llama.cpp": {}},
        {"rows": 1, "adapters": 0, "new": new}, turn=1, warm=1,
        goals={"transformers": 5.0, "llama.cpp": 1.3}, share=0.60,
    )  # fmt: skip


def _decode_rows(shape: str, new: int) -> Row:
    """One row with an adapter against eight rows with eight: the rate of eight is the larger."""
    one, eight = {"rows": 1, "adapters": 1}, {"rows": 8, "adapters": 8}
    return Row(
        f"decode-{shape}-8", f"decode {shape.upper()} NF4, 8 rows with 8 LoRAs against one with one",
        "decode", shape, {"graft, 8 rows": eight, "graft, 1 row": one}, {"new": new, "quant": "nf4"},
        turn=1, warm=1, goals={"graft, 1 row": 6.0},
    )  # fmt: skip


def _own(shape: str, length: int, **more: Any) -> Row:
    """QLoRA against Graft's own LoRA on 16-bit weights."""
    return Row(
        f"qlora-lora-{shape}-{length}", f"QLoRA against our own 16-bit LoRA, {shape.upper()}, T={length}",
        "train", shape, {OURS: {"quant": "nf4"}, "graft, 16 bits": {"quant": "none", "dtype": "bf16"}},
        {"length": length, "method": "lora", "dtype": "auto", "optimizer": "adamw"},
        goals={"graft, 16 bits": 1.0}, **more,
    )  # fmt: skip


ROWS = {
    row.name: row
    for row in (
        _train("160m", 512, quant="nf4", goals=(2.5, 1.35), share=0.65),
        _train("160m", 2048, quant="nf4", goals=(2.5, 1.35), share=0.65, turn=1, rounds=3, warm=1),
        _train("160m", 128, quant="nf4", goals=(2.5, 1.7), turn=4),
        _train("15m", 128, quant="nf4", goals=(2.5, 1.7), turn=5),
        _train("160m", 512, dtype="bf16", goals=(1.8,), share=0.65),
        _train("160m", 512, dtype="fp32", goals=(1.4,), share=0.65),
        _train("1.1b", 512, quant="nf4", goals=(2.0, 1.35), share=0.70, turn=1, rounds=3, warm=1),
        _train("1.1b", 128, quant="nf4", goals=(2.5, 1.7), share=0.55, turn=1, rounds=3, warm=1),
        _train("7b", 256, quant="nf4", peers=(), share=0.60, turn=1, rounds=2, warm=1),
        _train("160m", 512, method="full", dtype="bf16", title="full 160M, 8-bit AdamW", goals=(1.5,)),
        _load("1.1b", 3),
        _load("7b", 1),
        Row(
            "adamw-8bit-50m", "8-bit AdamW, 50M parameters", "optimizer", "160m",
            {OURS: {"optimizer": "adamw_8bit"}, "bitsandbytes": {"optimizer": "adamw_8bit"},
             "torch, fused fp32": {"optimizer": "adamw"}},
            {"layers": 7}, goals={"bitsandbytes": 20.0, "torch, fused fp32": 1 / 1.5},
        ),
        _decode("160m", 64),
        _decode("1.1b", 32),
        _decode_rows("160m", 64),
        Row("demo-training", "seedling, `graft demo`: training", "demo", "", {OURS: {}}, {"what": "train"},
            turn=10, warm=5, goals={BEFORE: 3.0}),
        Row("demo-decoding", "seedling, `graft demo`: decoding", "demo", "", {OURS: {}},
            {"what": "decode", "new": 100}, turn=3, rate=1500.0),
        _own("1.1b", 512, turn=1, rounds=3, warm=1),
        # What tests of the harness run: seconds on any machine. Left out unless it is named.
        _train("tiny", 32, quant="nf4"),
        _decode("tiny", 8),
        _load("tiny", 2),
    )
}  # fmt: skip
HIDDEN = tuple(name for name, row in ROWS.items() if row.shape == "tiny")


def chosen(words: list[str]) -> list[Row]:
    """Return the rows whose names hold one of the words; without words all but the hidden ones.

    >>> [row.name for row in chosen(["load-1.1b", "demo"])]
    ['load-1.1b', 'demo-training', 'demo-decoding']
    """
    wanted = (lambda name: any(word in name for word in words)) if words else (lambda name: True)
    return [row for name, row in ROWS.items() if name in words or (name not in HIDDEN and wanted(name))]
