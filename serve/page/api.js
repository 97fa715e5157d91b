// Requests one answer from the API, and explains errors to the reader.

const LOST = "The connection was lost. The text so far stays. Press Regenerate to try again.";
const UNREACHABLE =
  "The server can't be reached. Check that it still runs, then press Regenerate.";

/** An error whose message the page shows. */
export class AnswerError extends Error {}

/**
 * Sends a request and passes each piece of the answer to `onText`.
 * Returns why the answer ended: "stop" or "length".
 * Throws AnswerError, and the browser's AbortError if `signal` ends the request.
 */
export async function streamAnswer(body, signal, onText) {
  const response = await send(body, signal);
  let reason = null;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") break;
    const event = parse(data);
    if (event.error) throw new AnswerError(explain(500, event.error));
    const choice = event.choices?.[0];
    if (choice?.delta?.content) onText(choice.delta.content);
    reason = choice?.finish_reason ?? reason;
  }
  // A complete answer has a reason for its end, so without one the connection was lost.
  if (!reason) throw new AnswerError(LOST);
  return reason;
}

async function send(body, signal) {
  let response;
  try {
    // The address is relative, so that it also works under a route prefix.
    response = await fetch("v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ ...body, stream: true }),
      signal,
    });
  } catch (error) {
    throw orAbort(error, UNREACHABLE);
  }
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  const retryAfter = response.headers.get("retry-after");
  throw new AnswerError(explain(response.status, error ?? {}, retryAfter));
}

/** Yields the data of each server-sent event. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw orAbort(error, LOST);
    });
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
  }
}

function orAbort(error, message) {
  return error.name === "AbortError" ? error : new AnswerError(message);
}

function parse(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new AnswerError(LOST);
  }
}

/** Returns what happened and what the reader can do. */
function explain(status, { message = `status ${status}`, code, param }, retryAfter) {
  if (code === "context_length_exceeded") {
    const advice = param
      ? "Lower Max tokens in the settings, or empty it, and press Regenerate."
      : "Start a new conversation, or send a shorter prompt.";
    return `This is too long for the model: ${message}. ${advice}`;
  }
  const seconds = retryAfter === "1" ? "a second" : `${retryAfter} seconds`;
  const known = {
    400: `The server refuses this request: ${message}. Change the settings or send another prompt.`,
    401: "The key is missing or wrong. Reload the page and enter the key as the password.",
    403: `The server does not answer this page: ${message}.`,
    404: `The server answers: ${message}. Reload the page to see its models.`,
    413: "This conversation is too long to send. Start a new one.",
    503: `The server is busy. Press Regenerate in ${retryAfter ? seconds : "a moment"}.`,
    504: "The server had no time for this answer. Press Regenerate in a moment.",
  };
  return known[status] ?? `The server failed: ${message}. Press Regenerate to try again.`;
}
