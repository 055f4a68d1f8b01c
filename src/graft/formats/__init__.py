"""Byte layouts of other tools; and the refusal of the one kind of file we never open: pickles."""

from pathlib import Path

from graft.errors import ModelError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def refuse_pickle(path: str | Path) -> None:
    """Raise ModelError if `path` is a pickle, or a folder whose weights are pickles only.

    A pickle is a program: reading it may run the code of whoever wrote it. A path that does not exist (a hub
    id) passes.
    """
    path = Path(path)
    if path.is_dir():
        pickles = sorted(p.name for p in path.iterdir() if p.suffix in PICKLES and not _harmless(p))
        if not pickles or any(path.glob("*.safetensors")):
            return
        names = ", ".join(pickles[:3])
        given = f"{path} holds its weights as {names}, which is a pickle: reading it may run foreign code"
    elif path.suffix in PICKLES and path.exists():
        given = f"{path} is a pickle: reading it may run foreign code"
    else:
        return
    raise ModelError(
        given,
        "safetensors",
        "ask the author for safetensors; `graft convert` reads adapters of PEFT, the `adapters` library and "
        "loralib, weights only, in a child process",
    )


def _harmless(path: Path) -> bool:
    """Return whether a file is left over from a trainer, which nobody loads as weights."""
    return path.name in ("training_args.bin", "optimizer.pt", "scheduler.pt") or path.name.startswith(
        "rng_state"
    )
