"""All who hear of a run: the observers that the caller gives, the bar, and the trackers of its recipe."""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

from graft.errors import UsageError, listed, nearest
from graft.recipe import Recipe
from graft.runs import telling
from graft.runs.bar import Bar
from graft.runs.hear import Notes, heard
from graft.runs.trackers import trackers_of
from graft.training.observer import Observer, asks_to_stop

EVENTS = tuple(name for name, member in vars(Observer).items() if inspect.isfunction(member))


class Audience(Observer):
    """Passes every event on to several observers, each of which has a method for it or not.

    An exception that one of them raises says whose it is, and at which event.
    """

    def __init__(self, *observers: Any) -> None:
        # Flat, so that an exception passes one audience only.
        self.observers: list[Any] = []
        for observer in observers:
            self.observers += observer.observers if isinstance(observer, Audience) else [observer]

    @property
    def stop(self) -> bool:
        """Whether one of them asks to stop; asking takes the request back."""
        return any([asks_to_stop(observer) for observer in self.observers])

    @stop.setter
    def stop(self, value: bool) -> None:
        """Accept that the request is taken back: it was when it was read."""

    def busy(self, what: str, done: int = 0, total: int = 0) -> None:
        """Pass on what the run is doing.  what: as the library calls it."""
        self.doing(telling.doing(what), done, total)

    def heard(self) -> contextlib.AbstractContextManager[Notes]:
        """Collect the notices of the block, and pass them on to those who take them.

        Those that only show a run leave it to Python's filters of warnings whether there is one.
        """
        takes = any(_own(observer, "note") is not None for observer in self.observers)
        shown = next((observer.told for observer in self.observers if isinstance(observer, Bar)), None)
        return heard(self.note if takes else None, shown)


def _own(observer: Any, event: str) -> Any:
    """Return an observer's method for an event; None if it has none, or has that of Observer itself."""
    method = getattr(observer, event, None)
    return None if getattr(method, "__func__", None) is getattr(Observer, event) else method


def _passing_on(event: str) -> Any:
    def pass_on(self: Audience, *arguments: Any) -> None:
        for observer in self.observers:
            if (method := _own(observer, event)) is None:
                continue
            try:
                method(*arguments)
            except Exception as error:
                error.add_note(f"Raised by the observer {type(observer).__qualname__} at {event!r}.")
                raise

    return pass_on


for _event in EVENTS:
    setattr(Audience, _event, _passing_on(_event))


def observers_in(given: Any) -> list[Any]:
    """Return the observers that a caller gives: none, one, or several. Raises UsageError for other things."""
    several = list(given) if isinstance(given, list | tuple) else [given] if given is not None else []
    for observer in several:
        if inspect.isclass(observer):
            raise UsageError(
                f"observer={observer.__qualname__}, which is a class",
                "an object that hears of the run",
                f"make one of it: observer={observer.__qualname__}()",
            )
        if not any(callable(getattr(observer, event, None)) for event in EVENTS):
            methods = [name for name in dir(observer) if not name.startswith("_")]
            like = dict.fromkeys(near for name in methods for near in nearest(name, EVENTS, 1))
            kind = type(observer).__qualname__
            raise UsageError(
                f"the observer {kind} has no method for an event"
                + (f" (it has {listed(methods)})" if methods else ""),
                f"at least one of {', '.join(EVENTS)}",
                f"did you mean {listed(like)}?" if like else "derive it from graft.Observer",
            )
    return several


@contextlib.contextmanager
def attended(given: Any, recipe: Recipe | None = None, *, progress: bool = False) -> Iterator[Audience]:
    """Gather those who hear of the run in the block, and let them end with it.

    given: the caller's observers.  recipe: names its trackers.  progress: show a bar.
    """
    with contextlib.ExitStack() as stack:
        own: list[Any] = []
        if progress and (bar := Bar()).surface is not None:
            own.append(stack.enter_context(contextlib.closing(bar)))
        if recipe is not None:
            own += [stack.enter_context(tracker) for tracker in trackers_of(recipe)]
        yield Audience(*own, *observers_in(given))
