"""Write one conversation by a chat template, with what templates may use and no more than they need.

What a template may use is as in transformers: jinja2's sandbox, its filters and globals, its other names for
what an assistant thought. The system ends this process if a template takes too long, because nothing else
stops a template inside a function of C, such as 9 ** (9 ** 9).
"""

import json
import mmap
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2.exceptions import SecurityError, TemplateError

from graft.data.rows import BadRow
from graft.data.turns import OTHER_TEMPLATE
from graft.sizes import size

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

SECONDS = 1.0  # of processor time to write one conversation once
ALL_SECONDS = 4.0  # to write it in all the ways in which it is looked at, and MORE for each turn
MORE = 0.05
LARGE = 1 << 24  # bytes of a conversation for which all of this is doubled
TEXT = 1 << 20  # characters that a template may write, and TIMES as many as it is given
TIMES = 16
ROOM = 1 << 28  # bytes of memory, and 2 * TIMES as many as it is given


class TooMuch(Exception):
    """A template asks for too much, in these words."""


class Sandbox:
    """jinja2's sandbox with the limits of one conversation; `begin` sets them for the next."""

    def __init__(self) -> None:
        self._environment = _environment()
        self._compiled: dict[str, Any] = {}
        self._own, self._room = _memory(), 0

    def begin(self, size: int, turns: int) -> None:
        """Give what a conversation of so many bytes and turns may take."""
        self._scale = 1 + size / LARGE
        self._seconds = (ALL_SECONDS + MORE * turns) * self._scale
        self._characters = TEXT + TIMES * size
        room = ROOM + 2 * TIMES * size
        if resource is not None and room > self._room:  # the limit of memory is only raised
            self._room = room
            with suppress(ValueError, OSError):  # macOS refuses it
                resource.setrlimit(resource.RLIMIT_AS, (self._own + room, resource.RLIM_INFINITY))

    def write(self, template: str, messages: list[dict[str, Any]], variables: dict[str, Any]) -> str:
        """Return the messages as text. Raises BadRow where the template fails, and TooMuch."""
        try:
            with self._limited():
                if template not in self._compiled:
                    self._compiled[template] = self._environment.from_string(template)
                names = {**variables, "messages": [_with_thoughts(message) for message in messages]}
                return self._joined(self._compiled[template].generate(names))
        except TooMuch:
            raise
        except MemoryError:
            raise TooMuch(f"needs more than {size(self._room)} of memory") from None
        except RecursionError:
            detail = "it calls itself without an end, or its values are nested too deeply"
        except Exception as error:  # whatever a template provokes, the answer is the same
            detail = str(error)[:200].split("\n")[0] or type(error).__name__
        raise BadRow("template failed", detail, OTHER_TEMPLATE)

    def _joined(self, pieces: Iterator[str]) -> str:
        written: list[str] = []
        size = 0
        for piece in pieces:
            size += len(piece)
            if size > self._characters:
                raise TooMuch(f"writes more than {self._characters:,} characters")
            written.append(piece)
        return "".join(written)

    @contextmanager
    def _limited(self) -> Iterator[None]:
        """End this process if the block takes longer than is left, in processor time."""
        if not hasattr(signal, "setitimer"):  # not on Windows
            yield
            return
        seconds = min(SECONDS * self._scale, self._seconds)
        # Without a handler of ours the signal ends the process at once, inside any function of C too.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            yield
        finally:
            left, _ = signal.setitimer(signal.ITIMER_PROF, 0)
            self._seconds = max(self._seconds - (seconds - left), 1e-3)


def _memory() -> int:
    """Return the bytes of address space that this process has; none where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * mmap.PAGESIZE
    except OSError:  # not Linux
        return ROOM


def _with_thoughts(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message whose thoughts have every name under which templates read them, as in transformers."""
    message = {key: value for key, value in message.items() if value is not None}
    names = ("reasoning_content", "thinking", "reasoning")
    thoughts = next((message[name] for name in names if name in message), None)
    if thoughts is None:
        return message
    return {"thinking": thoughts, **message, "reasoning_content": thoughts}


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """Return jinja2's sandbox with what chat templates may use beside it."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _as_json
    environment.globals |= {
        "raise_exception": _failed,
        "strftime_now": lambda layout: datetime.now().strftime(layout),
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment


class _Generation(jinja2.ext.Extension):
    """The tag around what an assistant generates: its block is written as it is."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Any) -> Any:
        return caller()


class _Namespace(jinja2.utils.Namespace):
    """A namespace without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # a template may write namespace(self=1)
        self, given = args[0], dict(*args[1:], **kwargs)
        for name in given:
            _require_public(name)
        jinja2.utils.Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_public(name)
        super().__setitem__(name, value)


def _require_public(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"{name!r} begins with an underscore")


def _failed(message: str) -> None:
    raise TemplateError(message)


def _as_json(
    value: Any, ensure_ascii: Any = False, indent: Any = None, separators: Any = None, sort_keys: Any = False
) -> str:
    layout = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
    return json.dumps(value, ensure_ascii=ensure_ascii, **layout)


class _Dict:
    """The class dict, without what its attributes lead to."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """Return a dict of these keys with one value."""
        return dict.fromkeys(*args)
