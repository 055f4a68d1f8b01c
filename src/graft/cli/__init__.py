"""The command `graft`: one short file per verb; here the table of verbs, the errors and the exit codes.

A verb parses, calls the library and prints. Data goes to stdout, talk to stderr. Heavy modules are imported
inside the verbs' bodies: `graft --help` and every error of a recipe must answer at once, and torch alone
takes two seconds.

    exit 0 done   1 failed   2 misuse   70 a defect of ours   74 disk full   130 interrupted   143 terminated
"""

import os
import sys
import tempfile
import traceback
from pathlib import Path

import typer

from graft.cli import (
    chat,
    compare,
    convert,
    data,
    demo,
    doctor,
    eval,
    export,
    merge,
    methods,
    plan,
    quantize,
    train,
    verify,
)
from graft.cli.say import talk
from graft.errors import GraftError
from graft.storage import disk_full

app = typer.Typer(
    name="graft",
    help="Fine-tune language models on the machine you have.",
    epilog="Start with `graft demo`, or `graft train --model M --data ROWS`. A run's folder stands for its model.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# The order of a job, which is the order of the help.
for _verb in (
    demo,
    plan,
    train,
    eval,
    chat,
    compare,
    merge,
    export,
    verify,
    quantize,
    convert,
    methods,
    data,
    doctor,
):
    _verb.add_to(app)


def main() -> None:
    """Run the command line of this process and exit."""
    sys.exit(call(sys.argv[1:]))


def call(words: list[str]) -> int:
    """Run one command line and return the exit code. Failures take a few lines, never a traceback."""
    try:
        app(words, prog_name="graft")
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except KeyboardInterrupt:
        talk("graft: interrupted")
        return 130
    except GraftError as error:
        return _fail(error)
    except OSError as error:
        full = disk_full(error, Path(error.filename or "."))
        return _defect(error) if full is None else _fail(full)
    except Exception as error:
        return _defect(error)
    return 0


def _fail(error: GraftError) -> int:
    talk(f"graft: error: {error.given.rstrip()}")
    talk(f"  expected: {error.expected}")
    talk(f"  to do:    {error.remedy}")
    return error.exit_code


def _defect(error: Exception) -> int:
    """Print an unforeseen exception in one line, and write its traceback into a file."""
    handle, name = tempfile.mkstemp(prefix="graft-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        traceback.print_exception(error, file=file)
    message = str(error).splitlines()[0] if str(error) else "no message"
    talk(f"graft: error: {type(error).__name__}: {message}")
    talk("  expected: this never to happen; it is a defect of graft")
    talk(f"  to do:    report it with the traceback in {name}")
    return 70
