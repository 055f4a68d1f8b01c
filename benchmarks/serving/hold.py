"""How long loading an adapter holds up a text that is being written.

    python benchmarks/serving/hold.py

A text of the bare base is streamed. In its middle an adapter is loaded by name, again and again. The longest
gap between two pieces of the text is compared with the longest gap without loads, and with the time that a
load takes.
"""

import argparse
import asyncio
import os
import statistics
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "common"))
import asking
import places
import results

TOKENS, LOADS = 400, 6


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="seedling", help="a folder, or seedling")
    parser.add_argument("--texts", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    import graft

    load = os.getloadavg()[0]
    folder = places.empty(results.RAW.parent / "serving" / "hold")
    names = places.write_adapters(graft.load(options.model, quant="nf4"), folder / "root", 5)
    log, root = folder / "log.txt", str(folder / "root")
    place = places.graft(options.model, log, "--quant", "nf4", "--adapters", root, threads=options.threads)
    try:
        plain, loaded, took = [], [], []
        asyncio.run(text(place, names, []))  # warm
        for _ in range(options.texts):
            plain.append(asyncio.run(text(place, [], took)))
            loaded.append(asyncio.run(text(place, names, took)))
    finally:
        place.stop()
    facts = {
        "what": "hold", "model": Path(options.model).name, "plain_ms": plain, "loaded_ms": loaded,
        "plain": statistics.median(plain), "loaded": statistics.median(loaded),
        "took": statistics.median(took), "load": [load, os.getloadavg()[0]], "threads": options.threads,
        "machine": results.machine(),
    }  # fmt: skip
    results.write_raw(results.RAW / "serving" / f"hold-{facts['model']}.json", facts)
    print(f"longest gap: {facts['plain']:.1f} ms without loads, {facts['loaded']:.1f} ms with loads")
    print(f"a load takes {facts['took']:.1f} ms")
    return 0


async def text(place: places.Place, names: list[str], took: list[float]) -> float:
    """Stream a text; return the longest gap in ms between two of its pieces, while these are loaded.

    took: gets the milliseconds that every load took.
    """
    body = {
        "model": "base", "prompt": "The kettle", "max_tokens": TOKENS, "min_tokens": TOKENS - 1,
        "stream": True, "seed": 1,
    }  # fmt: skip
    done = asyncio.Event()

    async def load() -> None:
        await asyncio.sleep(0.1)
        for number in range(LOADS if names else 0):
            if done.is_set():
                return
            asked = {"lora_name": names[number % len(names)]}
            answer = await asking.ask(place.port, "/v1/load_lora_adapter", asked, key=places.KEY)
            if answer.status != 200:
                raise RuntimeError(answer.error)
            took.append(1000 * answer.times[-1])

    loads = asyncio.create_task(load())
    answer = await asking.ask(place.port, "/v1/completions", body)
    done.set()
    await loads
    return 1000 * max(b - a for a, b in zip(answer.times[:-1], answer.times[1:], strict=True))


if __name__ == "__main__":
    sys.exit(main())
