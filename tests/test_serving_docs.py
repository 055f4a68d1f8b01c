"""The page on serving is true: its commands run, llama.cpp answers as Graft does, other commands fit."""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from tiny_folder import write_model

from graft.cli import call
from graft.methods.lora import LoRA
from graft.models.load import load
from graft.shipping.gguf import write_gguf
from graft.shipping.several import Several, commands, export_each
from models import randomise

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/serving.md").read_text()
NAMES = ["seed0", "seed1", "seed2"]
PROMPT = "Day 1. What does the cat want? "
GREEDY = {"n_predict": 8, "temperature": 0, "top_k": 1, "ignore_eos": True}
GREEDY |= {"return_tokens": True, "cache_prompt": False}


def blocks(language):
    """The commands in fenced blocks of a language, each on one line."""
    fenced = [part.partition("\n") for part in PAGE.split("```")[1::2]]
    texts = [text.replace(" \\\n ", "") for name, _, text in fenced if name == language]
    return [line for text in texts for line in re.split(r"\n(?! )", text.strip())]


def words_of(line):
    return shlex.split(line.replace(" \\\n ", ""))


def printed(to, base, folder, rank=8):
    """The commands that an export of these adapters prints, as words."""
    done = Several(Path(folder), dict.fromkeys(NAMES, rank))
    texts = [use.lines.replace(" \\\n ", "") for use in commands(base, to, done, folder)]
    return [words_of(line) for text in texts for line in text.split("\n")]


def answer(line, place):
    """What a server at this place says to one `curl` line of the page."""
    words = shlex.split(line)
    address = re.sub(r"http://127\.0\.0\.1:\d+", place, words[1])
    body = words[words.index("-d") + 1].encode() if "-d" in words else None
    assert set(words[2::2]) <= {"-d", "-H"}
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=120) as got:
        return json.load(got)


def test_the_commands_for_vllm_and_ollama_are_those_that_an_export_prints():
    vllm, *_ = (line for line in blocks("") if line.startswith("vllm serve"))
    assert words_of(vllm) == printed("vllm", "out/base", "out/vllm")[0]
    creates = [words_of(line) for line in blocks("") if line.startswith("ollama create")]
    assert creates == [
        [*words[:-1], f"out/loras/{words[-1]}"]
        for words in printed("gguf-lora", "x", ".")
        if "create" in words
    ]
    server, *_ = (line for line in blocks("") if line.startswith("llama-server"))
    assert words_of(server) == printed("gguf-lora", "out/loras/seedling-F16.gguf", "out/loras")[0]


def test_the_page_of_the_server_names_every_route_and_every_field_that_is_ignored():
    pytest.importorskip("pydantic")
    from graft.serve.schema import IGNORED

    page = (ROOT / "docs/quickstart/serve.md").read_text()
    source = (ROOT / "src/graft/serve/app.py").read_text()
    routes = re.findall(r'@app\.(?:get|post)\("(/[\w/]+\w)', source)
    assert len(routes) > 8
    assert [route for route in routes if route not in page] == []
    assert [field for field in sorted(IGNORED) if f"`{field}`" not in page] == []


@pytest.fixture(scope="module")
def loras(tmp_path_factory):
    """A base in fp32 with three adapters, and a folder with their files and that of the base."""
    pytest.importorskip("gguf")
    home = tmp_path_factory.mktemp("loras")
    write_model(home / "model")
    base = load(home / "model", dtype="fp32")
    kinds = [
        LoRA(r=4, target_modules="all-linear", alpha_pattern={"up_proj": 4}),
        LoRA(r=2, use_rslora=True),
        LoRA(r=6, target_modules=["q_proj", "down_proj"], rank_pattern={"q_proj": 3}),
    ]
    for number, (name, kind) in enumerate(zip(NAMES, kinds, strict=True)):
        randomise(base.attach(name, kind), number, scale=0.2)
        base.adapters[name].save(home / "adapters" / name)
        base.detach(name)
    export_each(base, home / "loras", "gguf-lora", {name: home / "adapters" / name for name in NAMES})
    (home / "loras" / write_gguf(base, home / "loras", "f32")[1]).rename(home / "loras/model-F16.gguf")
    for name in NAMES:
        base.load_adapter(home / "adapters" / name, name)
    return base, home / "loras"


def written_here(base):
    """The tokens that the bare base and each adapter write to the prompt, by name."""
    voices = [None, *NAMES]
    answers = base.complete([PROMPT] * 4, voices, max_new_tokens=8, min_new_tokens=8)
    return {name: list(answer.tokens) for name, answer in zip(voices, answers, strict=True)}


def test_llama_cpp_swaps_adapters_and_each_answers_as_graft_does(loras):
    from llama_cpp import LlamaCpp

    base, folder = loras
    files = [folder / name / f"{name}-lora.gguf" for name in NAMES]
    llama = LlamaCpp(folder / "model-F16.gguf", files, scale=0.0)
    asked = {"prompt": base.tokenizer(PROMPT).input_ids, **GREEDY}
    ours = written_here(base)
    assert len({tuple(tokens) for tokens in ours.values()}) == 4
    told = llama.ask("/lora-adapters")
    assert [(one["id"], Path(one["path"]).parent.name, one["scale"]) for one in told] == [
        (number, name, 0) for number, name in enumerate(NAMES)
    ]

    def swapped(**scales):
        body = [{"id": NAMES.index(name), "scale": scale} for name, scale in scales.items()]
        assert llama.ask("/lora-adapters", body)["success"]
        return llama.ask("/completion", asked)["tokens"]

    def named(name, scale=1):
        lora = [{"id": NAMES.index(name), "scale": scale}]
        return llama.ask("/completion", asked | {"lora": lora})["tokens"]

    assert llama.ask("/completion", asked)["tokens"] == ours[None]
    for name in (*NAMES, *reversed(NAMES)):
        assert swapped(**{name: 1.0}) == ours[name]
        assert named("seed1") == ours["seed1"]  # a request's own choice, whatever the server's is
        assert named("seed0", scale=0) == ours[None]
    assert swapped() == ours[None]


def test_the_modelfiles_lead_to_files_that_llama_cpp_opens_together(loras):
    from llama_cpp import LlamaCpp

    base, folder = loras
    for name in NAMES:
        lines = (folder / f"{name}.Modelfile").read_text().splitlines()
        paths = {line.split()[0]: folder / line.split()[1] for line in lines[:2]}
        assert list(paths) == ["FROM", "ADAPTER"] and lines[2].startswith('TEMPLATE """')
        llama = LlamaCpp(paths["FROM"], paths["ADAPTER"])
        asked = {"prompt": base.tokenizer(PROMPT).input_ids, **GREEDY}
        assert llama.ask("/completion", asked)["tokens"] == written_here(base)[name]


@contextlib.contextmanager
def serving(line, folder):
    """The server that a `graft serve` line starts, on any free port."""
    words = [
        sys.executable,
        "-c",
        "import graft.cli; graft.cli.main()",
        *shlex.split(line)[1:],
        "--port",
        "0",
    ]
    exact = {**os.environ, "GRAFT_DTYPE": "fp32"}
    process = subprocess.Popen(words, cwd=folder, stderr=subprocess.PIPE, text=True, env=exact)
    said = []
    try:
        for text in process.stderr:
            said.append(text)
            if text.startswith("listens "):
                yield re.search(r"http://[\d.:]+", text)[0]
                break
    finally:
        process.terminate()
        said.append(process.stderr.read())
        assert process.wait(60) in (0, 143), said  # 143: it was told to stop


@pytest.mark.slow
def test_the_page_runs_as_it_stands_and_both_servers_answer_alike(tmp_path, monkeypatch, capfd):
    from llama_cpp import LlamaCpp

    pytest.importorskip("uvicorn")
    monkeypatch.chdir(tmp_path)
    serve = told = None
    for line in blocks("sh"):
        if line.startswith("graft serve"):
            serve = line
        elif line.startswith("graft "):
            capfd.readouterr()
            done = call(shlex.split(line)[1:])
            said = capfd.readouterr().err
            assert done == 0, f"{line}\n{said[-2000:]}"
            told = said.partition("next    ")[2] if "--to vllm" in line else told
        else:
            subprocess.run(shlex.split(line), check=True)
    asks = [line for line in blocks("") if line.startswith("curl")]
    vllm, *_ = (line for line in blocks("") if line.startswith("vllm serve"))
    assert words_of(told.replace("PATH_TO/seedling", "out/base"))[: len(words_of(vllm))] == words_of(vllm)
    with serving(serve, tmp_path) as place:
        ours = answer(asks[0], place)["choices"][0]["text"]
        for name in ("seedling", "seed2"):
            other = answer(asks[0].replace("seed1", name), place)["choices"][0]["text"]
            assert other != ours
    server = words_of(next(line for line in blocks("") if line.startswith("llama-server")))
    assert server[::2] == ["llama-server", server[2], server[4]] and server[1::2] == ["-m", "--lora-scaled"]
    scaled = [pair.rpartition(":") for pair in server[4].split(",")]
    assert {scale for *_, scale in scaled} == {"0"}
    llama = LlamaCpp(server[2], [Path(file) for file, *_ in scaled], scale=0.0)
    place = llama.server.listening_address
    assert answer(asks[1], place)["choices"][0]["text"] == ours
    assert answer(asks[2], place)["success"] is True
    assert [adapter["scale"] for adapter in answer(asks[3], place)] == [0, 0, 1]
