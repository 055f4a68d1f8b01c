"""GET /metrics, in Prometheus' text format."""

from collections.abc import Iterable

from graft.serve.texts import Served

QUANTILES = (0.5, 0.9, 0.99)


def metrics(served: Served) -> str:
    """Return what the server has done, as text."""
    worker, stats = served.worker, served.worker.stats
    infos = served.registry.infos()
    lines: list[str] = []

    def add(name: str, kind: str, help: str, values: Iterable[tuple[str, float]]) -> None:
        lines.append(f"# HELP graft_{name} {help}")
        lines.append(f"# TYPE graft_{name} {kind}")
        lines.extend(f"graft_{name}{labels} {value:.10g}" for labels, value in values)

    jobs = [
        (f'{{model="{adapter or served.name}",outcome="{outcome}"}}', count)
        for (adapter, outcome), count in sorted(stats.jobs.copy().items())
    ]
    add("texts_total", "counter", "Texts that have ended.", jobs)
    add("prompt_tokens_total", "counter", "Tokens of prompts.", [("", stats.prompt_tokens)])
    add("tokens_total", "counter", "Tokens that were written.", [("", stats.tokens)])
    add("steps_total", "counter", "Steps of the engine.", [("", stats.steps)])
    add("texts", "gauge", "Texts that wait or are written.", [("", worker.load)])
    add("slots", "gauge", "Slots of the caches that are taken.", [("", worker.slots)])
    add("adapter_users", "gauge", "Texts that hold an adapter.", [("", served.registry.users)])
    add("adapters", "gauge", "Adapters that are served.", [("", len(infos))])
    add("adapters_loaded", "gauge", "Adapters in memory.", [("", sum(info.loaded for info in infos))])
    add("adapter_bytes", "gauge", "Bytes of the adapters in memory.", [("", served.registry.bytes)])
    waits = {"first_token_seconds": stats.first_token_s, "text_seconds": stats.text_s}
    for name, held in waits.items():
        latest = sorted(held)
        places = [
            (f'{{quantile="{q}"}}', latest[min(len(latest) - 1, int(q * len(latest)))])
            for q in (QUANTILES if latest else ())
        ]
        add(name, "summary", "Of the last 1,024 texts, from their arrival.", places)
    return "\n".join(lines) + "\n"
