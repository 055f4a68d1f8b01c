"""The quickstarts' commands run as they stand, page after page: later pages use what earlier ones made."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from graft.cli import call

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_commands_of_the_quickstarts_run_in_order(tmp_path, monkeypatch, capfd):
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    names = (
        "chat",
        "classify",
        "prefer",
        "reinforce",
        "whole_life",
        "pretrain",
        "compare",
        "sweep",
        "many-adapters",
        "judge",
        "ship",
        "resume",
        "memory",
        "speed",
    )
    for name in names:
        text = (ROOT / f"docs/quickstart/{name}.md").read_text().replace(" \\\n ", "")
        lines = [
            line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()
        ]
        assert lines
        for line in lines:
            assert call(shlex.split(line)[1:]) == 0, f"{line}\n{capfd.readouterr().err[-2000:]}"
