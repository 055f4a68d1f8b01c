"""Word what typer finds wrong with a command line as our errors: what was given, expected, and to do."""

import re
from collections.abc import Iterable
from typing import Any

import typer

from graft.errors import UsageError, close_to

# Of all errors in a command line. Typer may bring click under a name of its own, so that is not imported.
MISUSE: Any = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")
ALIKE = 0.6  # how much a word must be like another one, to be meant


def option_names(context: Any) -> list[str]:
    """Return the options of a verb, as they are written."""
    return [name for one in context.command.params for name in one.opts if name.startswith("-")]


def did_you_mean(names: Iterable[str], otherwise: str) -> str:
    """Return a question for the names that a word is like.  otherwise: what to say if there are none."""
    found = list(names)
    return f"did you mean {' or '.join(found)}?" if found else otherwise


def misuse(error: Any) -> UsageError | None:
    """Return an error of typer's in our words; None where it only shows the help."""
    context, kind = getattr(error, "ctx", None), type(error).__name__
    if context is None or kind == "NoArgsIsHelpError":
        error.show()
        return None
    verb, message = context.command_path, error.format_message().rstrip(".")
    if kind == "NoSuchOption":
        return _unknown_option(error.option_name, context)
    if message.startswith("No such command"):
        given, known = message.split("'")[1], list(context.command.commands)
        remedy = did_you_mean(close_to(given, known, likeness=ALIKE), f"`{verb} --help` says what each does")
        return UsageError(f"unknown command {given}", f"one of {', '.join(known)}", remedy)
    usage = " ".join(context.command.get_usage(context).split()).removeprefix("Usage: ")
    usage = re.sub(r"\{(\w+)\}", lambda name: name[1].upper(), usage)
    return UsageError(f"{message[:1].lower()}{message[1:]}", usage, f"`{verb} --help` says more")


def _unknown_option(option: str, context: Any) -> UsageError:
    """Return the error of an option that a verb does not have, with what was probably meant."""
    verb, name = context.command_path, option.lstrip("-").replace("-", "_")
    remedy = did_you_mean(
        close_to(option, option_names(context), likeness=ALIKE), f"`{verb} --help` lists them"
    )
    if any(one.param_type_name == "argument" and one.name == name for one in context.command.params):
        remedy = f"write it without {option}: {verb} {name.upper()}"
    return UsageError(f"unknown option {option}", f"an option of `{verb}`", remedy)
