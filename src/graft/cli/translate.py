"""Turn the Python words of a message into those of the command line.

A message of the library that names an option of both says `force=True (--force)`. Here the option is left.
"""

import re

_BOTH = re.compile(
    r"""(?:pass\ )?\b\w+=(?:True|(?P<quote>['"]?)(?P<value>[\w./-]*)(?P=quote))\ \((?P<option>--[\w-]+)\)""",
    re.VERBOSE,
)


def on_command_line(text: str) -> str:
    """Return a message with the option alone where it has the keyword and the option.

    >>> on_command_line("delete it, or pass force=True (--force)")
    'delete it, or pass --force'
    >>> on_command_line("export to='peft' (--to)")
    'export --to peft'
    """
    return _BOTH.sub(_option, text)


def _option(found: re.Match[str]) -> str:
    verb = "pass " if found[0].startswith("pass ") else ""
    return f"{verb}{found['option']}" + (f" {found['value']}" if found["value"] else "")
