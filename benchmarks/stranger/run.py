"""Walk a stranger's path from the built wheel: install, own rows, train, score, chat, export, open elsewhere.

python benchmarks/stranger/run.py [--target] [--keep FOLDER] [--wheel FILE]

The wheel is built, installed into a fresh environment outside the source tree, and everything after that
runs in an empty folder with a CSV as Excel writes it: semicolons, a byte order mark, columns with names of
its own. Where a command refuses, the remedy that it prints is what is typed next. Every command, its exit
code, its seconds and the end of its output go to RESULTS.md beside this file.

--target: install the wheel's own files beside the packages of this Python instead of into a new environment;
nothing is fetched then. --keep: the folder to work in, which is kept. --wheel: one that is built already.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("RESULTS.md")
THINGS = ("lamp", "kettle", "chair", "clock", "basket", "teapot", "mirror", "bench")
ROOMS = ("kitchen", "hall", "garden", "study", "attic")
SHOWN = 14  # lines of an output
COLUMNS = re.compile(r"data\.columns=('\{[^}]*\}'|\{[^}]*\}|\"\{[^}]*\}\")")
PEFT = """
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("out/adapter")
model = AutoModelForCausalLM.from_pretrained("out/seedling", dtype=torch.float32)
model = PeftModel.from_pretrained(model, "out/adapter").eval()
ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
new = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
print("PEFT answers:", tokenizer.decode(new[0][ids.shape[1]:], skip_special_tokens=True))
"""
LLAMA_CPP = """
import glob, xllamacpp
settings = xllamacpp.CommonParams()
settings.model.path = glob.glob("out/gguf/*.gguf")[0]
settings.n_ctx, settings.n_gpu_layers, settings.warmup, settings.verbosity = 256, 0, False, -1
server = xllamacpp.Server(settings)
done = server.handle_completions({"prompt": PROMPT, "n_predict": 12, "temperature": 0, "top_k": 1})
print("llama.cpp answers:", done["choices"][0]["text"])
"""


@dataclass
class Stranger:
    """Somebody in an empty folder with an environment, and what happened so far.

    python: of the environment.  path: a folder of packages beside it, or None.
    """

    folder: Path
    python: str
    path: Path | None = None
    steps: list[dict] = field(default_factory=list)

    def run(self, words: list[str], *, shown: str | None = None, may_fail: bool = False) -> str:
        """Run a command in the empty folder and record it; return its output.  shown: how it is typed."""
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        environment |= {"HF_HUB_OFFLINE": "1", "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
        environment |= {"PYTHONPATH": str(self.path)} if self.path else {}
        began = time.perf_counter()
        done = subprocess.run(words, cwd=self.folder, env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - began
        said = (done.stdout + done.stderr).replace(str(self.folder), "WORK").replace(str(ROOT), "SOURCE")
        typed = shown or shlex.join(words)
        self.steps.append({"typed": typed, "code": done.returncode, "seconds": seconds, "said": said})
        if done.returncode and not may_fail:
            raise SystemExit(f"$ {typed}\n{said}\nexit code {done.returncode}")
        return said

    def graft(self, line: str, *, may_fail: bool = False) -> str:
        """Run a line that begins with graft."""
        call = [self.python, "-c", "from graft.cli import main; main()"]
        return self.run([*call, *shlex.split(line)[1:]], shown=line, may_fail=may_fail)

    def ask(self, title: str, code: str, prompt: str) -> str:
        """Run a program that asks the exported model with another tool."""
        return self.run([self.python, "-c", f"PROMPT = {prompt!r}\n{code}"], shown=f"python -c '# {title}'")


def write_rows(path: Path) -> None:
    """Write questions and answers as Excel writes a CSV where commas are decimal points."""
    lines = ["question;answer"]
    for i in range(120):
        thing, room = THINGS[i % len(THINGS)], ROOMS[(i // len(THINGS)) % len(ROOMS)]
        lines.append(f"Where does the {thing} of house {i} stand?;The {thing} stands in the {room}.")
    path.write_text("\r\n".join(lines) + "\r\n", encoding="utf-8-sig")


def built(folder: Path) -> Path:
    """Build the wheel of this checkout into a folder."""
    words = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(words, check=True, cwd=folder)
    return next(folder.glob("graftlm-*.whl"))


def environment(folder: Path, wheel: Path, *, target: bool) -> tuple[str, Path | None]:
    """Install the wheel; return the Python that has it, and a folder of packages beside it."""
    if target:
        place = folder / "packages"
        words = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", str(place), str(wheel)]
        subprocess.run([sys.executable, *words], check=True)
        return sys.executable, place
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    python = str(folder / "venv" / "bin" / "python")
    extras = [f"{wheel}[gguf]", "peft", "xllamacpp"]
    words = ["-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt"), *extras]
    subprocess.run([python, *words], check=True)
    return python, None


def walk(stranger: Stranger) -> None:
    """Do what a newcomer does, and follow what the messages say."""
    write_rows(stranger.folder / "faq.csv")
    where = stranger.run(
        [stranger.python, "-c", "import graft; print(graft.__file__)"], shown="python -c 'import graft; ...'"
    )
    assert "SOURCE" not in where, f"graft came from the source tree: {where}"
    train = "graft train --model seedling --data faq.csv --method lora --output runs/faq"
    train += " train.max_steps=60 train.lr=5e-3"
    said = stranger.graft(train, may_fail=True)
    if stranger.steps[-1]["code"]:
        proposed = COLUMNS.search(said)
        assert proposed, f"the error proposes no columns:\n{said}"
        stranger.graft(f"{train} {proposed[0]}")
    stranger.graft("graft eval runs/faq")
    prompt = "Where does the lamp of house 3 stand?"
    stranger.graft(f"graft chat runs/faq --prompt '{prompt}'")
    stranger.graft("graft export runs/faq out/model --to hf")
    stranger.graft("graft export runs/faq out/adapter --to peft")
    stranger.graft("graft export runs/faq out/gguf --to gguf")
    stranger.graft("graft verify out/model")
    stranger.graft(f"graft chat out/model --prompt '{prompt}'")
    stranger.graft("graft export seedling out/seedling --to hf")
    stranger.ask("PEFT opens out/adapter", PEFT, prompt)
    stranger.ask("llama.cpp opens out/gguf", LLAMA_CPP, prompt)


def record(stranger: Stranger, how: str) -> str:
    """Return all steps as a page."""
    lines = [
        "# A stranger's path from the wheel",
        "",
        f"Made by `python benchmarks/stranger/run.py`. {how}",
        "",
    ]
    for step in stranger.steps:
        tail = step["said"].rstrip().splitlines()[-SHOWN:]
        code = f" (exit code {step['code']})" if step["code"] else ""
        lines += ["```", f"$ {step['typed']}", *tail, "```", "", f"{step['seconds']:.0f} s{code}", ""]
    return "\n".join(lines)


def main() -> None:
    """Do it all; print one line of facts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", action="store_true")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--wheel", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.keep or Path(temporary)).resolve()
        (folder / "work").mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        wheel = given.wheel.resolve() if given.wheel else built(folder)
        python, path = environment(folder, wheel, target=given.target)
        installed = time.perf_counter() - began
        stranger = Stranger(folder / "work", python, path)
        walk(stranger)
        how = "The wheel's files beside installed packages." if given.target else "A fresh environment."
        how += f" Built and installed in {installed:.0f} s."
        if not given.target:
            RESULTS.write_text(record(stranger, how), encoding="utf-8")
        codes = [step["code"] for step in stranger.steps]
        print(json.dumps({"wheel": wheel.name, "steps": len(codes), "refused": sum(map(bool, codes))}))


if __name__ == "__main__":
    main()
