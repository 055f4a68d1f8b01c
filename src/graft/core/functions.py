"""Functions of the user's own, by name: "package.module:function" or "folder/file.py:function".

Modules are found as Python finds them, and in the folder where the command runs; a file's path begins there.
"""

import hashlib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from graft.errors import UsageError, nearest

FORMS = "package.module:function or folder/file.py:function"


def imported(path: str, what: str) -> Callable[..., Any]:
    """Return the function that a path names.

    what: it is to be, such as "metric".  A file is read once as long as it does not change. Raises UsageError
    if there is no such module, file or function, or if an error occurs while it is imported.
    """
    _, _, name = path.rpartition(":")
    module = _module(path, what)
    try:
        function = getattr(module, name)
    except AttributeError as error:
        functions = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        close = ", ".join(nearest(name, functions))
        raise UsageError(
            f"{what} {path!r} cannot be imported: there is no {name!r} in it",
            FORMS,
            f"did you mean {close}?" if close else "check the name of the function",
        ) from error
    if not callable(function):
        raise UsageError(f"{what} {path!r} is a {type(function).__name__}", "a function", "name a function")
    return cast("Callable[..., Any]", function)


def fingerprint(path: str, what: str) -> str:
    """Return the SHA-256 of the file that a path names, and of the one where its function is written.

    It is that of the path alone where there is no file, as for functions of Python itself.
    """
    function: Any = inspect.unwrap(imported(path, what))
    files = [getattr(_module(path, what), "__file__", None)]
    try:
        files.append(inspect.getsourcefile(function))
    except TypeError:  # an object that can be called
        files.append(getattr(sys.modules.get(type(function).__module__), "__file__", None))
    digest = hashlib.sha256(path.encode())
    for file in dict.fromkeys(files):
        if file is not None and Path(file).is_file():
            digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def line_of(error: BaseException, file: str | None = None) -> str:
    """Return `file:line` where an error occurred, "" if it is not known.

    file: the last line of it is named, if it has one, rather than one of a library that it called.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
    frames = [frame for frame in frames if frame.filename == file] or frames
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def _module(path: str, what: str) -> ModuleType:
    """Return the module that a path names. Raises UsageError."""
    place, _, name = path.rpartition(":")
    if not place or not name:
        raise UsageError(f"{what} {path!r} cannot be imported", FORMS, "write both, with a colon between")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # `python -m` adds this folder; an installed command does not
    try:
        return (
            _from_file(Path(place), path, what) if place.endswith(".py") else importlib.import_module(place)
        )
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        missing = isinstance(error, ModuleNotFoundError) and f"{place}.".startswith(f"{error.name}.")
        where = "" if missing else line_of(error, str(Path(place).resolve()))
        raise UsageError(
            f"{what} {path!r} cannot be imported: {type(error).__name__}{where and f' at {where}'}: {error}",
            f"{FORMS}, importable from the folder where the command runs",
            "check the spelling and that the package is installed or on PYTHONPATH"
            if missing
            else "correct the file: it must be importable",
        ) from error


def _from_file(file: Path, path: str, what: str) -> ModuleType:
    """Return a file as a module. Its name is made of its place and its content, so that it cannot clash."""
    if not file.is_file():
        close = nearest(file.name, sorted(p.name for p in file.parent.glob("*.py")))
        raise UsageError(
            f"{what} {path!r} cannot be imported: there is no file {file}",
            FORMS,
            f"did you mean {', '.join(close)}?" if close else f"check the path; it begins at {os.getcwd()}",
        )
    source, where = file.read_bytes(), str(file.resolve())
    name = f"_graft_{hashlib.sha256(where.encode() + source).hexdigest()}"
    if name not in sys.modules:
        module = ModuleType(name)
        module.__file__ = where
        sys.modules[name] = module  # dataclasses look it up there
        try:
            # Python's own loader may take the bytecode of a file that was written in the same second.
            exec(compile(source, where, "exec"), module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
