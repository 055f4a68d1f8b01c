"""A judge behind an OpenAI-compatible endpoint: requests, retries, and a file of the answers that came.

Nothing is asked unless a caller gives the address. The key comes from the environment and goes nowhere but to
that address: not into files or messages, and not through a redirect. Answers are kept in a file as they come,
so that a judging that was stopped goes on where it was, and costs nothing when it is done again.

The judge is asked for what Dettmers et al. 2023 (arXiv 2305.14314, §5.2) ask for, in our words: an
explanation and then 1, 2 or 3 (equal) in a last line; or two marks out of ten in the first line, then an
explanation.
"""

import http.client
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from graft.errors import GraftError, UsageError, one_of
from graft.evaluate.judges import Judge, Opinion, Question, scores_in, verdict_in
from graft.evaluate.kept import Kept
from graft.storage.signals import Stop

KEY = "GRAFT_JUDGE_KEY"  # the environment variable with the key
LARGEST = 1 << 22  # bytes of an answer
LONGEST_PAUSE_S = 60.0
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
LOOPBACK = ("localhost", "127.0.0.1", "::1")

SYSTEM = "You judge answers of assistants, fairly and precisely."
SHOWN = """\
The user asked:
{prompt}

Answer of assistant 1:
{first}
(end of answer 1)

Answer of assistant 2:
{second}
(end of answer 2)

"""
FORMS: dict[str, tuple[str, Callable[[str], Opinion]]] = {
    "pair": (
        "Compare how helpful, relevant, accurate and detailed the two answers are. The order in which they "
        "are shown must not matter. First explain your judgement. Then write a last line with nothing but "
        "one number: 1 if answer 1 is better, 2 if answer 2 is better, 3 if they are equally good.",
        verdict_in,
    ),
    "scores": (
        "Mark how helpful, relevant, accurate and detailed each answer is, from 1 to 10; 10 is best. The "
        "order in which they are shown must not matter. Write a first line with nothing but the two marks, "
        "separated by a blank: that of answer 1, then that of answer 2. Then explain them.",
        scores_in,
    ),
}

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Endpoint:
    """A model behind an address.

    url: up to `/v1`.  model: its name there.  cache: the file of answers that came; None keeps none.
    tries: of one request, with growing pauses from pause_s on.  workers: requests at the same time.
    """

    url: str
    model: str
    cache: Path | None = None
    temperature: float = 0.0
    max_tokens: int = 1024
    timeout_s: float = 120.0
    tries: int = 5
    pause_s: float = 1.0
    workers: int = 4

    def __post_init__(self) -> None:
        if not _is_address(self.url):
            raise UsageError(
                f"the endpoint {self.url!r}",
                "an address such as http://127.0.0.1:8000/v1",
                "write http:// or https://, the host, and the path up to /v1",
            )
        if _key() and urlsplit(self.url).scheme == "http" and not _on_this_machine(self.url):
            raise UsageError(
                f"{KEY} is set and {self.url} is not encrypted",
                "https, or an address of this machine",
                f"write https://, or unset {KEY}",
            )

    def ask(self, talks: Sequence[list[dict[str, str]]], progress: Progress | None = None) -> list[str]:
        """Return the answer to every conversation; equal ones are asked once.

        Raises GraftError if the endpoint refuses, or gives no answer in so many tries; the answers that came
        are in the cache then.
        """
        kept = Kept(self.cache)
        asked = {json.dumps(talk): talk for talk in talks}.values()
        missing = [talk for talk in asked if kept.get(self._asked(talk)) is None]
        stopped = threading.Event()

        def keep(talk: list[dict[str, str]]) -> None:
            kept.put(self._asked(talk), self._answer(talk, stopped))

        pool, wait = ThreadPoolExecutor(self.workers), True
        try:
            waiting = [pool.submit(keep, talk) for talk in missing]
            for count, done in enumerate(as_completed(waiting), len(asked) - len(missing) + 1):
                done.result()
                if progress is not None:
                    progress("judged", count, len(asked))
        except Stop:
            wait = False  # a signal is obeyed at once
            raise
        finally:
            stopped.set()
            pool.shutdown(wait, cancel_futures=True)  # what is on its way is still kept
        return [kept.get(self._asked(talk)) or "" for talk in talks]

    def _body(self, talk: list[dict[str, str]]) -> dict[str, Any]:
        settings = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        return {"model": self.model, "messages": talk, **settings}

    def _asked(self, talk: list[dict[str, str]]) -> list[Any]:
        """Return what an answer is an answer to."""
        return [self.url, self._body(talk)]

    def _answer(self, talk: list[dict[str, str]], stopped: threading.Event) -> str:
        """Return the answer to a conversation, after several tries if need be and while nothing stopped."""
        for tried in range(1, self.tries + 1):
            try:
                return self._once(talk)
            except urllib.error.HTTPError as error:
                trouble = f"it answered {error.code} {error.reason}: {_excerpt(error)}"
                wait = _seconds(error.headers.get("Retry-After"))
                if error.code not in AGAIN:
                    break
            except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
                trouble, wait = f"{type(error).__name__}: {error}", None  # ValueError: the answer is no JSON
            if tried < self.tries and not stopped.is_set():
                growing = self.pause_s * 2 ** (tried - 1)
                stopped.wait(min(growing if wait is None else wait, LONGEST_PAUSE_S))
            if stopped.is_set():
                break
        raise GraftError(
            f"the judge {self.model} at {self.url} gave no answer in {tried} tries; {trouble}",
            "an OpenAI-compatible endpoint with this model, and its key if it needs one",
            f"check the address, the name of the model and {KEY}, then run the same command again: "
            "the answers so far are kept",
        )

    def _once(self, talk: list[dict[str, str]]) -> str:
        """Send one request and return its answer. Raises what urllib and json raise."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := _key():
            headers["Authorization"] = f"Bearer {key}"
        address = f"{self.url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(address, json.dumps(self._body(talk)).encode(), headers)
        proxies = [urllib.request.ProxyHandler({})] if _on_this_machine(self.url) else []
        with urllib.request.build_opener(_NoRedirect, *proxies).open(request, timeout=self.timeout_s) as came:
            raw = came.read(LARGEST + 1)
        if len(raw) > LARGEST:
            raise ValueError(f"the answer is longer than {LARGEST} bytes")
        content = json.loads(raw)["choices"][0]["message"]["content"]
        if content is not None and not isinstance(content, str):
            raise ValueError("the answer's content is not text")
        return content or ""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follow no redirect: it would take the key and the answers to another address."""

    def redirect_request(self, *args: Any, **keywords: Any) -> None:
        return None


def by_endpoint(endpoint: Endpoint, form: str = "pair", progress: Progress | None = None) -> Judge:
    """Return the model at an endpoint as a judge.  form: "pair" asks for a verdict, "scores" for marks."""
    one_of("form", form, FORMS)
    task, read = FORMS[form]

    def judge(questions: Sequence[Question]) -> list[Opinion]:
        talks = [
            [
                {"role": "system", "content": SYSTEM},
                {
                    "role": "user",
                    "content": SHOWN.format(prompt=q.prompt, first=q.first, second=q.second) + task,
                },
            ]
            for q in questions
        ]
        return [read(text) for text in endpoint.ask(talks, progress)]

    return judge


def _key() -> str:
    """Return the key of the environment, "" if there is none. Raises UsageError if it cannot be one."""
    key = os.environ.get(KEY, "").strip()
    if not all("!" <= c <= "~" for c in key):  # urllib would refuse it with a message that shows it
        raise UsageError(f"{KEY} has blanks or signs that no key has", "a key", "set it again")
    return key


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # no port, or a bracket that is not closed
        return False


def _on_this_machine(url: str) -> bool:
    return urlsplit(url).hostname in LOOPBACK


def _seconds(text: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for; None if it is absent or a date."""
    return float(text) if text is not None and text.strip().isdigit() else None


def _excerpt(error: urllib.error.HTTPError) -> str:
    """Return the beginning of what came with a refusal."""
    try:
        return " ".join(error.read(2000).decode("utf-8", "replace").split())[:200] or "no text"
    except (OSError, http.client.HTTPException):
        return "no text"
