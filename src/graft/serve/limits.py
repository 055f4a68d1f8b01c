"""What one request, and all of them together, may ask of a server."""

from dataclasses import dataclass

from graft.sizes import KIB, MIB


@dataclass(frozen=True)
class Limits:
    """The bounds of a server; what exceeds one is refused before work is done for it."""

    body_bytes: int = MIB  # of a request's body
    header_bytes: int = 16 * KIB  # of all headers of a request
    depth: int = 32  # of nested JSON
    messages: int = 512  # of one conversation
    prompt_tokens: int = 32_768  # of one prompt, and at most what the model's context holds
    max_tokens: int = 8_192  # of one answer
    choices: int = 8  # n, and prompts in one request
    stops: int = 4  # stop texts
    stop_chars: int = 64  # of each
    logit_bias: int = 300  # entries
    top_logprobs: int = 20
    per_key: int = 64  # texts at once for one key
    timeout_s: float = 600.0  # of one answer
    connections: int = 512  # open at once; a few more are told so, those beyond are cut
    head_s: float = 15.0  # until a request's headers are there
    body_s: float = 30.0  # until its body is there
    stuck_s: float = 60.0  # of a client that does not read what it is sent
    idle_s: int = 30  # of a connection that is kept, and between two pieces of an upload
