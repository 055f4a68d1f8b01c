"""The lines of the grid as plain data: what each of them trains.

    method      entries of a recipe's `method:`; several make one adapter. HEAD joins them for classes
    lr          middle rate on each task; the first rates tried are a third of it, itself and three times it.
                The line is not run on a task that is not named
    shares      settings of the first method, as shares of the run's steps
    on          settings of the first method on one task alone
    fuses       for each task, tasks with rates: Pfeiffer adapters that are trained on these beforehand
    quant       how the base is stored
    peft        PEFT has the method too: settings of its config in addition to those in our file
    own_start   PEFT draws its own start: our file holds the result of a start or of an encoder, not what is
                trained

A method sits where its file's defaults, which are its paper's, put it. LINEARS stands for all linear layers
of the blocks; other methods choose their places. A new method is a line here; table.py names the methods
without one.
"""

from typing import Any

LINEARS = "the task's linear layers"
LAPTOP, BANKING = "laptop", "banking77"


def rates(laptop: float, banking: float) -> dict[str, float]:
    """Return the middle rates of a line that is run on both tasks."""
    return {LAPTOP: laptop, BANKING: banking}


def everywhere(name: str, **settings: Any) -> list[dict[str, Any]]:
    """Return one method at all linear layers."""
    return [{"name": name, "target_modules": LINEARS, **settings}]


LORA = {"r": 8, "lora_alpha": 16}
BUDGET = {"tinit": 0.15, "tfinal": 0.35}
PREFIX = {"name": "prefix"}
HEAD = {"name": "task_head", "lr": 3e-2}  # the best rate of the line `head`: more than most methods need

LINES: dict[str, dict[str, Any]] = {
    "full": {"method": [{"name": "full"}], "lr": rates(2e-3, 5e-4), "peft": {}},
    "head": {"method": [{"name": "task_head"}], "lr": {BANKING: 3e-2}},
    "subset": {"method": [{"name": "subset", "top_layers": 1}], "lr": rates(6e-3, 5e-4)},
    "subset_2": {
        "method": [{"name": "subset", "top_layers": 2}], "on": {LAPTOP: {"target_modules": ["lm_head"]}},
        "lr": rates(6e-3, 5e-4),
    },
    "trainable_tokens": {"method": [{"name": "trainable_tokens"}], "lr": rates(12e-3, 3e-3), "peft": {}},
    "bitfit": {
        "method": [{"name": "bitfit"}], "on": {BANKING: {"exclude_modules": ["pooler.dense"]}},
        "lr": rates(3e-2, 5e-3),
    },
    "ln_tuning": {"method": [{"name": "ln_tuning"}], "lr": rates(3e-2, 5e-3), "peft": {}},
    "ia3": {"method": [{"name": "ia3"}], "lr": rates(9e-2, 1e-2), "peft": {}},
    "lora": {"method": everywhere("lora", **LORA), "lr": rates(4e-3, 2e-3), "peft": {}},
    "lora_rslora": {
        "method": everywhere("lora", **LORA, use_rslora=True), "lr": rates(4e-3, 1e-3), "peft": {},
    },
    "lora_dora": {"method": everywhere("lora", **LORA, use_dora=True), "lr": rates(4e-3, 2e-3), "peft": {}},
    "lora_pissa": {
        "method": everywhere("lora", **LORA, init_lora_weights="pissa"), "lr": rates(6e-3, 1e-3),
        "peft": {"init_lora_weights": "pissa", **LORA}, "own_start": True,
    },
    "qlora": {"method": everywhere("lora", **LORA), "quant": "nf4", "lr": rates(4e-3, 2e-3), "peft": {}},
    "qa_lora": {"method": everywhere("qa_lora", r=8), "quant": "int4", "lr": rates(4e-3, 2e-3)},
    "adalora": {
        "method": everywhere("adalora", init_r=12, target_r=8, deltaT=10, lora_alpha=24), "shares": BUDGET,
        "lr": rates(1e-2, 5e-3), "peft": {},
    },
    "vera": {"method": everywhere("vera"), "lr": rates(2e-2, 1e-2), "peft": {}},
    "loha": {"method": everywhere("loha"), "lr": rates(6e-3, 3e-3), "peft": {}},
    "lokr": {"method": everywhere("lokr"), "lr": rates(6e-3, 3e-3), "peft": {}},
    "krona": {"method": everywhere("krona"), "lr": rates(6e-3, 3e-3)},
    "oft": {"method": everywhere("oft"), "lr": rates(4e-3, 1e-3), "peft": {}},
    "boft": {"method": everywhere("boft"), "lr": rates(1e-2, 5e-3), "peft": {}},
    "houlsby": {"method": [{"name": "houlsby"}], "lr": rates(4e-3, 2e-3)},
    "pfeiffer": {"method": [{"name": "pfeiffer"}], "lr": rates(4e-3, 2e-3)},
    "parallel": {"method": [{"name": "parallel", "scaling": 1.0}], "lr": rates(4e-3, 2e-3)},
    "scaled_parallel": {"method": [{"name": "parallel"}], "lr": rates(4e-3, 1e-3)},
    "compacter": {"method": [{"name": "compacter"}], "lr": rates(6e-3, 3e-3)},
    "compacter++": {"method": [{"name": "compacter", "mh_adapter": False}], "lr": rates(6e-3, 3e-3)},
    "adapter_fusion": {
        "method": [{"name": "adapter_fusion"}], "lr": rates(2e-3, 1e-3),
        "fuses": {LAPTOP: {LAPTOP: 3.6e-2, "e2e": 3.6e-2}, BANKING: {BANKING: 6e-3, "acts": 6e-3}},
    },
    "krona_b": {"method": [{"name": "krona_b"}], "lr": rates(4e-3, 3e-3)},
    "krona_b_res": {"method": [{"name": "krona_b", "residual": True}], "lr": rates(4e-3, 3e-3)},
    "adamix": {"method": [{"name": "adamix"}], "lr": rates(4e-3, 2e-3)},
    "adamix_lora": {"method": everywhere("adamix", host="lora"), "lr": rates(4e-3, 2e-3)},
    "prompt_tuning": {"method": [{"name": "prompt"}], "lr": rates(3e-2, 3e-2), "peft": {}},
    "prefix_tuning": {"method": [PREFIX], "lr": rates(1e-2, 1e-2), "peft": {}},
    "p_tuning": {"method": [{"name": "p_tuning"}], "lr": rates(3e-3, 3e-3), "peft": {}, "own_start": True},
    "ipt": {"method": [{"name": "ipt", "intrinsic_dim": 250}], "lr": rates(3e-2, 3e-2)},
    "warp": {"method": [{"name": "warp"}], "lr": {BANKING: 9e-3}},
    "ladder": {"method": [{"name": "ladder"}], "lr": rates(4e-3, 3e-3)},
    "lets": {"method": [{"name": "lets"}], "lr": {BANKING: 6e-3}},
    "attention_fusion": {"method": [{"name": "attention_fusion"}], "lr": rates(2e-2, 1e-2)},
    "mam": {"method": [PREFIX, {"name": "parallel"}], "lr": rates(4e-3, 2e-3)},
    "lora+prefix": {"method": [*everywhere("lora", **LORA), PREFIX], "lr": rates(4e-3, 2e-3)},
}  # fmt: skip
