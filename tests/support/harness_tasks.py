"""Write tasks for lm-eval over rows of our own, so that it needs neither a hub nor a network."""

import json
from pathlib import Path

from tiny_folder import ANIMALS, TOYS

CHOICE = """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
doc_to_choice: "{{choices}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
WRITING = """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{text}}"
generation_kwargs: {until: ["."], max_gen_toks: 12}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
PERPLEXITY = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
"""
TASKS = {"toys_choice": CHOICE, "toys_writing": WRITING, "toys_perplexity": PERPLEXITY}
GROUP = "group: toys\ntask: [toys_choice, toys_writing]\n"


def documents(count: int = 12) -> list[dict[str, object]]:
    """Return questions with choices of one and of several tokens, and the right text."""
    choices = [*TOYS, "a very old rope"]
    return [
        {
            "question": f"Day {i}. What does the {ANIMALS[i % 4]} want?",
            "choices": choices,
            "answer": i % 3,
            "text": f"The {ANIMALS[i % 4]} wants a {TOYS[i % 3]}. " * (1 + i % 4 * 3),
        }
        for i in range(count)
    ]


def write_tasks(folder: Path) -> Path:
    """Write the tasks of TASKS, a group, and the rows they read, with their cache beside them."""
    folder.mkdir()
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in documents()), encoding="utf-8")
    for name, task in TASKS.items():
        read = json.dumps({"data_files": {"test": str(rows)}, "cache_dir": str(folder / "cache")})
        text = f"task: {name}\ndataset_path: json\ndataset_kwargs: {read}\ntest_split: test\n"
        examples = "" if name == "toys_perplexity" else "fewshot_split: test\n"
        (folder / f"{name}.yaml").write_text(text + examples + task, encoding="utf-8")
    (folder / "toys.yaml").write_text(GROUP, encoding="utf-8")
    return folder
