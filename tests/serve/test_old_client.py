"""The server as the first line of OpenAI's client sees it, which many programs still have installed."""

import json
import os
import subprocess
import sys

import pytest

VERSION = "1.60.0"
ASK = """
import json, sys
import openai
assert openai.__version__ == sys.argv[2], openai.__version__
client = openai.OpenAI(base_url=sys.argv[1], api_key=sys.argv[3], max_retries=0)
chat = [{"role": "user", "content": "Write about a kettle."}]
asked = {"model": "lora-0", "messages": chat, "temperature": 0, "max_tokens": 8}
whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
stream = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
errors = []
for more in ({"model": "nobody"}, {"temperature": -1}, {"extra_body": {"colour": "red"}}):
    try:
        client.chat.completions.create(**{**asked, **more})
    except openai.APIStatusError as error:
        errors.append(type(error).__name__)
print(json.dumps({
    "models": [model.id for model in client.models.list()],
    "text": whole.choices[0].message.content,
    "tokens": len(whole.choices[0].logprobs.content),
    "streamed": "".join(c.choices[0].delta.content or "" for c in stream if c.choices),
    "usage": stream[-1].usage.total_tokens == whole.usage.total_tokens,
    "completion": client.completions.create(model="seedling", prompt="The", max_tokens=2).choices[0].text,
    "vector": len(client.embeddings.create(model="seedling", input="The kettle").data[0].embedding),
    "errors": errors,
}))
"""


@pytest.mark.slow
def test_a_client_of_the_first_line_works(place, tmp_path):
    """It is installed beside this package's own, where an index of packages can be reached."""
    target = tmp_path / "old"
    command = [sys.executable, "-m", "pip", "install", "-q", "--target", str(target), f"openai=={VERSION}"]
    installed = subprocess.run(command, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"openai=={VERSION} cannot be installed here: {installed.stderr[-200:]}")
    done = subprocess.run(
        [sys.executable, "-c", ASK, f"{place['url']}/v1", VERSION, place["key"]],
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    got = json.loads(done.stdout)
    assert got["models"] == ["seedling", *sorted(place["names"])]
    assert got["text"] == got["streamed"] != "" and got["tokens"] <= 8 and got["usage"]
    assert got["completion"] and got["vector"] == place["base"].model.config.hidden_size
    assert got["errors"] == ["NotFoundError", "BadRequestError", "BadRequestError"]
