"""One stream and eight, and the first token of a prompt while others are written: Graft and its peers.

    python benchmarks/serving/throughput.py                 the seedling, every server that is installed
    python benchmarks/serving/throughput.py --shape 15m     random weights of a shape of ../speed
    python benchmarks/serving/throughput.py --quick          a trial

The servers have the same model in fp32 and get the same requests, in turns: A B C, C B A. Beside them Graft
serves it as NF4. Tokens are counted by the tokenizer. `same` is the share of texts that are those of Graft in
fp32, to their last letter.
"""

import argparse
import asyncio
import os
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "common"))
sys.path.append(str(Path(__file__).parents[1] / "speed"))
import asking
import places
import results

from graft import GraftError

Words = tuple[str, ...]
WORDS: Words = (
    "the", "a", "kettle", "lamp", "chair", "table", "blue", "red", "small", "large", "of", "with", "for",
    "steel", "wood", "glass",
)  # fmt: skip
NUMBERED = tuple(f"t{number}" for number in range(100, 612))  # what the tokenizer of a shape knows
STREAMS, NEW, LONG = 8, 64, 400  # streams at once, tokens of an answer, words of a long prompt


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="seedling", help="a folder, or seedling")
    parser.add_argument("--shape", help="random weights of this shape instead")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--only", nargs="+", default=[], help="sides whose name begins with one of these")
    parser.add_argument("--quick", action="store_true", help="one round of few requests, as a trial")
    options = parser.parse_args()
    work = results.RAW.parent / "serving" / "throughput"
    work.mkdir(parents=True, exist_ok=True)
    model, name = chosen(options, work)
    tokenizer, words = tokenizer_of(model), NUMBERED if options.shape else WORDS
    sides, absent = started(options, model, work)
    load = os.getloadavg()[0]
    try:
        found = asyncio.run(
            measure(sides, tokenizer, words, 1 if options.quick else options.rounds, options.quick)
        )
    finally:
        for side in sides:
            side.stop()
    facts = {
        "what": "throughput", "model": name, "absent": absent, "sides": found, "threads": options.threads,
        "load": [load, os.getloadavg()[0]], "machine": results.machine(),
    }  # fmt: skip
    raw = results.RAW / "serving" / ("trial" if options.quick else "") / f"throughput-{name}.json"
    results.write_raw(raw, facts)
    for line in lines(facts):
        print(line)
    return 0


def chosen(options: argparse.Namespace, work: Path) -> tuple[str, str]:
    """Return the model's folder and what it is called."""
    if options.shape:
        import weights
        from shapes import SHAPES

        return str(weights.model(SHAPES[options.shape], work)), options.shape
    if options.model == "seedling":
        from internals import SEEDLING

        return str(SEEDLING), "seedling"
    return options.model, Path(options.model).name


def tokenizer_of(model: str) -> Any:
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    return AutoTokenizer.from_pretrained(model, local_files_only=True)


def started(options: argparse.Namespace, model: str, work: Path) -> tuple[list[places.Place], list[str]]:
    """Start every server that is installed; return them and what is not there."""

    def wanted(name: str) -> bool:
        return not options.only or name.startswith(tuple(options.only))

    sides, absent, threads = [], [], options.threads
    for name, words in (("graft fp32", ["--dtype", "fp32"]), ("graft nf4", ["--quant", "nf4"])):
        if wanted(name):
            side = places.graft(model, work / f"{name}.txt", *words, threads=threads)
            side.name = name
            sides.append(side)
    if wanted("transformers"):
        try:
            sides.append(places.transformers(model, work / "transformers.txt", threads=threads))
        except RuntimeError as error:
            absent.append(f"transformers serve: {str(error).splitlines()[-1][:200]}")
    if wanted("llama"):
        if places.missing("xllamacpp"):
            absent.append("llama.cpp: xllamacpp is not installed")
        else:
            try:
                file = exported(model, work)
                log = work / "llama.txt"
                sides.append(places.llama(file, log, rows=STREAMS, context=1024, threads=threads))
            except (RuntimeError, GraftError) as error:  # or no tokenizer that llama.cpp reads
                absent.append(f"llama.cpp: {str(error).splitlines()[-1][:200]}")
    return sides, absent


def exported(model: str, work: Path) -> Path:
    """Return the model as a GGUF file in fp32."""
    import graft

    base = graft.load(model, dtype="fp32")
    folder = graft.export(base, places.empty(work / "gguf"), "gguf", type="f32", force=True)
    (file,) = Path(folder).glob("*.gguf")
    return file


def prompts(chance: random.Random, words: Words, count: int, length: int) -> list[str]:
    """Return so many texts of `length` random words, no two of which begin alike."""
    return [" ".join(chance.choice(words) for _ in range(length)) for _ in range(count)]


async def measure(
    sides: list[places.Place], tokenizer: Any, words: Words, rounds: int, quick: bool
) -> dict[str, Any]:
    """Let the sides take turns; return what was measured of each."""
    found: dict[str, Any] = {
        side.name: {"one": [], "eight": [], "first_alone": [], "first_busy": [], "texts": []}
        for side in sides
    }
    texts = prompts(random.Random(1), words, 2 if quick else 6, 12)
    for side in sides:  # warm
        await asyncio.gather(*(one(side, text) for text in texts[:2]))
    for number in range(rounds):
        for side in sides if number % 2 == 0 else sides[::-1]:
            chance = random.Random(number)
            facts = found[side.name]
            facts["one"].append(
                await rate(side, tokenizer, texts, words, 1, facts["texts"] if number == 0 else [])
            )
            facts["eight"].append(await rate(side, tokenizer, texts, words, STREAMS, []))
            for long in prompts(chance, words, 1 if quick else 3, LONG // (4 if quick else 1)):
                facts["first_alone"].append((await one(side, long, new=4)).times[0])
            facts["first_busy"] += await while_others_write(side, chance, words, 1 if quick else 3, quick)
    mine = found.get("graft fp32", {}).get("texts", [])
    for facts in found.values():
        pairs = list(zip(facts["texts"], mine, strict=False))
        facts["same"] = sum(a.split() == b.split() for a, b in pairs) / len(pairs) if pairs else None
        one_, eight = statistics.median(facts["one"]), statistics.median(facts["eight"])
        alone, busy = (statistics.median(facts[key]) for key in ("first_alone", "first_busy"))
        facts |= {"one_per_s": one_, "eight_per_s": eight, "gain": eight / one_}
        facts |= {"alone_s": alone, "busy_s": busy, "slower": busy / alone}
    return found


async def one(side: places.Place, prompt: str, new: int = NEW) -> asking.Answer:
    """Ask once, as a stream. Raises RuntimeError for an answer without text."""
    body = {
        "model": side.model, "prompt": prompt, "temperature": 0, "max_tokens": new, "stream": True,
        **({"cache_prompt": False} if side.name == "llama.cpp" else {}),
    }  # fmt: skip
    answer = await asking.ask(side.port, "/v1/completions", body)
    if answer.status != 200 or answer.error or not answer.times:
        raise RuntimeError(f"{side.name} answers {answer.status}: {answer.error or answer.text[:200]!r}")
    return answer


async def rate(
    side: places.Place, tokenizer: Any, texts: list[str], words: Words, streams: int, kept: list[str]
) -> float:
    """Return tokens per second of so many streams, each of which asks every text, beginning elsewhere."""

    async def stream(number: int) -> int:
        count = 0
        for place in range(len(texts)):
            answer = await one(side, texts[(place + number) % len(texts)] + " " + words[number])
            count += len(tokenizer(answer.text, add_special_tokens=False).input_ids)
            kept.append(answer.text)
        return count

    begun = time.perf_counter()
    counts = await asyncio.gather(*(stream(number) for number in range(streams)))
    return sum(counts) / (time.perf_counter() - begun)


async def while_others_write(
    side: places.Place, chance: random.Random, words: Words, count: int, quick: bool
) -> list[float]:
    """Return when the first token of a long prompt came, while others were being written all the time."""
    stop = asyncio.Event()

    async def write() -> None:
        while not stop.is_set():
            await one(side, prompts(chance, words, 1, 12)[0])

    others = [asyncio.create_task(write()) for _ in range(STREAMS - 1)]
    await asyncio.sleep(0.2)
    firsts = [
        (await one(side, long, new=4)).times[0]
        for long in prompts(chance, words, count, LONG // (4 if quick else 1))
    ]
    stop.set()
    await asyncio.gather(*others)
    return firsts


def lines(facts: dict[str, Any]) -> list[str]:
    """Return the table of one model."""
    head = f"| {facts['model']} | one stream | eight | gain | first token | while 7 write | | same |"
    table = [head, "|---|---|---|---|---|---|---|---|"]
    for name, side in facts["sides"].items():
        same = "" if side["same"] is None else f"{side['same']:.0%}"
        table.append(
            f"| {name} | {side['one_per_s']:.0f} tokens/s | {side['eight_per_s']:.0f} | {side['gain']:.1f} x "
            f"| {1000 * side['alone_s']:.0f} ms | {1000 * side['busy_s']:.0f} ms | {side['slower']:.2f} x "
            f"| {same} |"
        )
    return [*table, *(f"Not here: {one}" for one in facts["absent"])]


if __name__ == "__main__":
    sys.exit(main())
