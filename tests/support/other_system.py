"""A process that has only what macOS or Windows has, as far as Linux can pretend it.

    python other_system.py macos|windows FOLDER

imports every file of the package and runs some commands in FOLDER. What a system lacks is taken away; what it
forbids is forbidden (Windows: to open folders, to remove or replace open files, to sync what was opened for
reading, to send signal 0). Libraries are imported before, since they have their own ways on those systems.
"""

import ast
import builtins
import contextlib
import errno
import importlib
import io
import mmap
import os
import pkgutil
import signal
import sys
from pathlib import Path

SRC = Path(__file__).resolve().parents[2] / "src/graft"
EXTRAS = (
    "lm_eval",
    "triton",
    "bitsandbytes",
    "datasets",
    "gguf",
    "peft",
)  # take seconds, and are not used here
LINUX = ("posix_fallocate", "sched_getaffinity", "O_DIRECTORY", "posix_fadvise", "memfd_create")
UNIX = ("sysconf", "fork", "getuid", "geteuid", "killpg", "fchmod", "mkfifo", "getpgid", "setsid")
SIGNALS = ("SIGHUP", "SIGPIPE", "SIGALRM", "SIGUSR1", "setitimer", "ITIMER_PROF", "alarm")
KERNELS = ("/proc", "/sys/fs")  # what Linux alone tells of itself


def libraries() -> None:
    """Import what the package imports of others, late imports included."""
    names = {"psutil", "torch.distributed.checkpoint"}
    for path in SRC.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(str(node.module))
    for name in sorted(names):
        if name.partition(".")[0] not in (*EXTRAS, "graft"):
            with contextlib.suppress(ImportError):
                importlib.import_module(name)


def without_proc() -> None:
    """Let nobody but psutil read what Linux tells: on those systems psutil asks in another way."""

    def hidden(path):
        if not isinstance(path, str | os.PathLike) or not os.fspath(path).startswith(KERNELS):
            return False
        frame = sys._getframe(2)
        while frame is not None:
            if "/psutil/" in frame.f_code.co_filename or frame.f_code is in_use.__code__:
                return False
            frame = frame.f_back
        return True

    def hiding(function):
        def asked(path, *args, **kwargs):
            if hidden(path):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            return function(path, *args, **kwargs)

        return asked

    builtins.open = io.open = hiding(io.open)
    for name in ("open", "stat", "listdir"):
        setattr(os, name, hiding(getattr(os, name)))


def in_use(path: str) -> bool:
    """Return whether this process has a file open, or one in a folder."""
    here = os.path.realpath(path)
    for number in os.listdir("/proc/self/fd"):
        try:
            opened = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if opened == here or opened.startswith(f"{here}/"):
            return True
    return False


def as_on_windows() -> None:
    """Forbid what Windows forbids."""
    opened, synced, killed = os.open, os.fsync, os.kill
    writable = set()

    def open_file(path, flags, *args, **kwargs):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        file = opened(path, flags, *args, **kwargs)
        (writable.discard if flags & 3 == os.O_RDONLY else writable.add)(file)
        return file

    def sync(file):
        flags = FCNTL.fcntl(file, FCNTL.F_GETFL)
        if flags & 3 == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        synced(file)

    def kill(pid, number):
        assert number, "signal 0 is a Ctrl-C on Windows"
        killed(pid, number)

    def moving(function, replaces):
        def moved(path, new, **kwargs):
            if not replaces and os.path.lexists(new):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path), None, str(new))
            for one in (path, new):
                if in_use(one):
                    raise PermissionError(errno.EACCES, "it is used by another process", str(one))
            function(path, new, **kwargs)

        return moved

    def removing(function):
        def removed(path, **kwargs):
            # tempfile has its own way on Windows, which it does not take here.
            if in_use(path) and not sys._getframe(1).f_code.co_filename.endswith("tempfile.py"):
                raise PermissionError(errno.EACCES, "it is used by another process", str(path))
            function(path, **kwargs)

        return removed

    os.open, os.fsync, os.kill = open_file, sync, kill
    os.rename, os.replace = moving(os.rename, False), moving(os.replace, True)
    os.unlink = os.remove = removing(os.unlink)


def pretend(system: str) -> None:
    """Take away what the system does not have."""
    for name in LINUX + (UNIX if system == "windows" else ()):
        if hasattr(os, name):
            delattr(os, name)
    if system == "windows":
        for name in ("resource", "fcntl", "pwd", "grp", "termios"):
            sys.modules[name] = None
        for name in SIGNALS:
            delattr(signal, name)
        del mmap.MADV_DONTNEED
        as_on_windows()
    without_proc()


def modules() -> list[str]:
    """Return every module of the package but those that import an extra, and the one that is a program."""
    package = importlib.import_module("graft")
    names = [module.name for module in pkgutil.walk_packages(package.__path__, "graft.")]
    left_out = ("graft.kernels.triton_", "graft.evaluate.harness_model", "graft.formats.unpickle")
    return sorted(name for name in names if not name.startswith(left_out))


def main(system: str, folder: str) -> None:
    """Import everything, and run the commands."""
    libraries()
    pretend(system)
    importlib.import_module("graft.storage")
    for name, module in list(sys.modules.items()):
        if name.startswith("graft.") and hasattr(module, "WINDOWS"):
            assert module.WINDOWS is False
            module.WINDOWS = system == "windows"
    for name in modules():
        importlib.import_module(name)
    from graft.cli import call

    os.chdir(folder)
    rows = "".join(f'{{"prompt": "name: {n}", "completion": "The {n} is here."}}\n' for n in "ABCDEFGH")
    Path("rows.jsonl").write_text(rows, encoding="utf-8", newline="\n")
    train = ["train", "--model", "seedling", "--data", "rows.jsonl", "train.max_steps=2", "output=run"]
    train += ["quant=nf4", "train.optimizer=paged_adamw", "evaluate.limit=2", "train.batch_size=2"]
    train += ["evaluate.max_new_tokens=4", "dtype=fp32"]
    for words in (
        ["doctor"],
        train,
        [*train, "train.max_steps=2"],
        ["merge", "run", "merged", "--into", "dequantised", "--lossy"],
        ["chat", "run", "--prompt", "name: A", "--max-new-tokens", "4"],
    ):
        code = call(words)
        assert code == 0, f"graft {' '.join(words)} ended with {code}"
    left = [str(path) for path in Path().rglob("*") if path.name.startswith((".tmp-", ".merged"))]
    assert not left, f"left behind: {left}"
    print("done")


if __name__ == "__main__":
    import fcntl as FCNTL  # before it is taken away

    main(*sys.argv[1:])
