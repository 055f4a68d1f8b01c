"""One side of a row, in a process of its own: python side.py '{"side": "graft", "kind": "train", ...}'

The harness starts it and talks to it through its standard input and output (common/pipe.py).
"""

import importlib
import json
import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "common"))

# name of a side -> the module that carries it out
SIDES = {"limits": "limits", "reference": "peer_side", "llama.cpp": "llama_side"}


def main() -> None:
    spec = json.loads(sys.argv[1])
    import link
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    pipe = link.Link()
    name = "graft_side" if spec["side"].startswith("graft") else SIDES.get(spec["side"], "peer_side")
    importlib.import_module(name).KINDS[spec["kind"]](pipe, spec)


if __name__ == "__main__":
    main()
