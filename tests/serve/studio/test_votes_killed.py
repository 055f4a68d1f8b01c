"""A thousand votes over HTTP, at a server that is killed again and again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")
RUN = Path(__file__).parents[3] / "benchmarks" / "votes" / "run.py"


@pytest.mark.slow
def test_a_thousand_acknowledged_votes_outlive_twenty_kills(capsys):
    done = subprocess.run([sys.executable, RUN], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    with capsys.disabled():
        print(f"\n{found}")
    assert (found["acknowledged"], found["kept"], found["lost"], found["twice"]) == (1000, 1000, 0, 0)
    assert found["kills"] == 20 and found["sent_again"] > 0
