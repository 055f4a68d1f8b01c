"""The README's first screen is true: its ten lines and its commands run as they stand."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


@pytest.fixture
def elsewhere(tmp_path):
    """A folder of its own with the recipes beside it, as in a checkout."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    return tmp_path


def block(language: str, containing: str) -> str:
    fenced = [part.partition("\n") for part in README.split("```")[1::2]]
    return next(text for name, _, text in fenced if name == language and containing in text)


@pytest.mark.parametrize("base", ['"seedling", quant="nf4"', "a folder, not quantised"])
def test_the_ten_lines_run(elsewhere, base):
    lines = block("python", "import graft")
    if "folder" in base:
        lines = lines.replace('"seedling", quant="nf4"', repr(str(ROOT / "src/graft/seedling")))
    done = subprocess.run([sys.executable, "-c", lines], cwd=elsewhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (elsewhere / "adapters/shop/adapter_model.safetensors").exists()
    assert (elsewhere / "out/shop/model.safetensors").exists()


def test_the_commands_run_in_order(elsewhere):
    graft = Path(sys.executable).with_name("graft")
    for line in block("", "graft train").strip().splitlines():
        done = subprocess.run([graft, *shlex.split(line)[1:]], cwd=elsewhere, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"


def test_the_two_commands_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    wanted = re.findall(r"^make (\w+)", block("", "make demo"), re.MULTILINE)
    assert wanted == ["demo", "test"] and all(f"\n{target}:" in makefile for target in wanted)
