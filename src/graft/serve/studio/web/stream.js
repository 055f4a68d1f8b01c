// An answer of the server while it is written, by OpenAI's routes.

import { Refused, ask } from "./studio.js";

export const CHAT = "/v1/chat/completions";
export const TEXT = "/v1/completions";
const ALTERNATIVES = 4;  // of each token

/**
 * Ask for an answer, and hand on what comes of it. body: as the route takes it, without what streams need.
 * heard: is called with {text, tokens: [{text, logprob, others: [[text, logprob]]}]}.
 * Returns {reason, tokens, first, rate}: seconds until the first token, tokens per second after it.
 * Raises Refused; AbortError where `signal` stops it.
 */
export async function answer(path, body, heard, signal) {
  const wanted = path === CHAT ? { logprobs: true, top_logprobs: ALTERNATIVES } : { logprobs: ALTERNATIVES };
  const begun = performance.now();
  const response = await ask("POST", path, { ...body, ...wanted, stream: true, stream_options: { include_usage: true } }, { signal });
  let reason = null, tokens = 0, first = null, last = begun;
  for await (const event of events(response)) {
    if (event.error) throw new Refused(200, event);
    if (event.usage) tokens = event.usage.completion_tokens;
    const choice = event.choices[0];
    if (!choice) continue;
    reason = choice.finish_reason ?? reason;
    const piece = { text: choice.delta ? choice.delta.content ?? "" : choice.text, tokens: named(choice.logprobs) };
    if (!piece.text && !piece.tokens.length) continue;
    last = performance.now();
    first ??= last;
    heard(piece);
  }
  const span = (last - (first ?? begun)) / 1000;
  return { reason, tokens, first: ((first ?? last) - begun) / 1000, rate: tokens > 1 && span > 0 ? (tokens - 1) / span : null };
}

/** Yield the events of a stream as JSON. Raises an error where it ends before its last event. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw broken();
    }
    if (part.done) throw broken();
    const lines = (left + part.value).split("\n\n");
    left = lines.pop();
    for (const line of lines) {
      const data = line.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}
const broken = () => new Error("The connection ended before the answer did.");

function named(logprobs) {
  if (logprobs?.content) {
    return logprobs.content.map((one) => ({
      text: one.token, logprob: one.logprob, others: one.top_logprobs.map((other) => [other.token, other.logprob]),
    }));
  }
  return (logprobs?.tokens ?? []).map((text, place) => ({
    text, logprob: logprobs.token_logprobs[place], others: Object.entries(logprobs.top_logprobs?.[place] ?? {}),
  }));
}

/** Return a request as a command of curl and as Python. key: whether the server wants one. */
export function asCalls(path, body, key) {
  const origin = location.origin;
  const quoted = `'${JSON.stringify(body).replaceAll("'", "'\\''")}'`;
  const header = key ? ` \\\n  -H "Authorization: Bearer $GRAFT_API_KEY"` : "";
  const method = path === CHAT ? "chat.completions" : "completions";
  const found = path === CHAT ? "message.content" : "text";
  const words = Object.entries(body).map(([name, value]) => `    ${name}=${python(value)},\n`).join("");
  return {
    curl: `curl ${origin}${path} \\\n  -H 'Content-Type: application/json'${header} \\\n  -d ${quoted}`,
    python: (key ? "import os\n\n" : "") + "from openai import OpenAI\n\n"
      + `client = OpenAI(base_url="${origin}/v1", api_key=${key ? 'os.environ["GRAFT_API_KEY"]' : '"none"'})\n`
      + `answer = client.${method}.create(\n${words})\nprint(answer.choices[0].${found})\n`,
  };
}

function python(value) {
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${python(one)}`).join(", ")}}`;
}
