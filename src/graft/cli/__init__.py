"""The command `graft`: one short file per verb; here the list of verbs, the errors and the exit codes.

A verb parses its words, calls the library and prints. Results go to stdout, everything else to stderr. Heavy
modules are imported inside the verbs' bodies: `graft --help` and every error of a recipe must answer at once,
and torch alone takes two seconds. What takes longer is announced first (`graft.cli.wait`).

    exit 0 done   1 failed   2 misuse   70 a bug in Graft   74 disk full   130 interrupted   143 terminated
    exit 141 nobody reads the output any longer (graft ... | head)
"""

import os
import sys
import tempfile
import traceback
import warnings
from functools import partial
from typing import Annotated, Any

import typer

from graft.cli import (
    ask,
    chat,
    compare,
    convert,
    data,
    demo,
    doctor,
    eval,
    export,
    judge,
    merge,
    methods,
    plan,
    quantize,
    rank,
    runs,
    serve,
    studio,
    sweep,
    train,
    verify,
)
from graft.cli.misuse import MISUSE, misuse
from graft.cli.say import BOLD, RED, finish, note, noted, paint, show, talk
from graft.cli.translate import on_command_line
from graft.cli.wait import over
from graft.errors import GraftError, Notice
from graft.storage import system_error
from graft.storage.signals import Interrupted, obeyed

app = typer.Typer(
    name="graft",
    help="Fine-tune language models on the machine you have.",
    epilog="Start with `graft demo`, or `graft train --model M --data ROWS`. A MODEL may be a run's folder.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# In the order of a job, which the help keeps.
VERBS = (
    demo,
    plan,
    train,
    sweep,
    eval,
    runs,
    chat,
    ask,
    compare,
    judge,
    rank,
    merge,
    export,
    verify,
    quantize,
    convert,
    serve,
    studio,
    methods,
    data,
    doctor,
)
STOPPED = (130, 143)  # exit codes after SIGINT and SIGTERM
for _verb in VERBS:
    _verb.add_to(app)


def _version(wanted: bool) -> None:
    if wanted:
        from graft import __version__

        show(f"graft {__version__}")
        raise typer.Exit


@app.callback()
def _graft(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None: ...


def main() -> None:
    """Run the command line of this process and exit."""
    code = call(sys.argv[1:])
    finish()
    if code in STOPPED:  # at once: threads that wait for somebody's answer would hold the process
        os._exit(code)
    sys.exit(code)


def call(words: list[str]) -> int:
    """Run one command line and return the exit code. Failures take a few lines, never a traceback."""
    try:
        noted.clear()
        with obeyed(), warnings.catch_warnings():
            warnings.simplefilter("always", Notice)
            warnings.showwarning = partial(_show_warning, warnings.showwarning)
            code = app(words, prog_name="graft", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except Interrupted as stop:
        over()
        talk(f"graft: {stop.given}")
        talk(f"  to do:    {stop.remedy}")
        return stop.exit_code
    except MISUSE as error:
        told = misuse(error)
        return error.exit_code if told is None else _fail(told)
    except GraftError as error:
        return _fail(error)
    except Exception as error:
        of_system = system_error(error, f"in graft {words[0]}" if words else "")
        return _defect(error) if of_system is None else _fail(of_system)
    finally:
        over()


def _show_warning(others: Any, message: Warning | str, category: type[Warning], *where: Any) -> None:
    """Print a notice as a line of ours.  others: shows what other packages warn of."""
    if issubclass(category, Notice):
        note(on_command_line(str(message)))
    else:
        others(message, category, *where)


def _fail(error: GraftError) -> int:
    """Print the three parts of an error, in the words of the command line; return its exit code."""
    over()
    talk(f"{paint('graft: error:', RED)} {on_command_line(error.given.rstrip())}")
    talk(f"  {paint('expected:', BOLD)} {on_command_line(error.expected)}")
    talk(f"  {paint('to do:', BOLD)}    {on_command_line(error.remedy)}")
    return error.exit_code


def _defect(error: Exception) -> int:
    """Print an unforeseen exception in one line, and write its traceback into a file."""
    message = str(error).splitlines()[0] if str(error) else "no message"
    over()
    talk(f"{paint('graft: error:', RED)} {type(error).__name__}: {message}")
    talk("  expected: no such error. This is a bug in Graft")
    lines = traceback.format_exception(error)
    try:
        handle, name = tempfile.mkstemp(prefix="graft-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(lines)
        talk(f"  to do:    please report it with the traceback in {name}")
    except OSError as trouble:  # no folder for temporary files, or a full one
        reason = trouble.strerror or trouble
        talk(f"  to do:    please report it with this traceback (no file could hold it: {reason})")
        talk("".join(lines).rstrip())
    return 70
