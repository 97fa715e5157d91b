// This asks the API beside the page for one answer, and says what went wrong in words for a reader.

const LOST = "The connection was lost. What was written stays. Press Regenerate to ask again.";
const UNREACHABLE =
  "The server can't be reached. See whether it still runs, then press Regenerate.";

/** What went wrong. The message is what the page shows. */
export class AnswerError extends Error {}

/**
 * Sends a request and gives each part of the answer to `onText` as it is written.
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
  // Each whole answer has a reason for its end, so one without was cut off.
  if (!reason) throw new AnswerError(LOST);
  return reason;
}

async function send(body, signal) {
  let response;
  try {
    // The address is relative, so that it holds under a route prefix too.
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

/** Returns a sentence on what happened and one on what to do. */
function explain(status, { message = `status ${status}`, code, param }, retryAfter) {
  if (code === "context_length_exceeded") {
    const advice = param
      ? "Lower Max tokens in the settings, or empty it, and press Regenerate."
      : "Begin a new conversation, or send a shorter prompt.";
    return `This is too long for the model: ${message}. ${advice}`;
  }
  const seconds = retryAfter === "1" ? "a second" : `${retryAfter} seconds`;
  const known = {
    400: `The server refuses this request: ${message}. Change the settings or send another prompt.`,
    401: "The key is missing or wrong. Reload the page and give the key as the password.",
    403: `The server does not answer this page: ${message}.`,
    404: `The server answers: ${message}. Reload the page to choose among its models.`,
    413: "This conversation is too long to send. Begin a new one.",
    503: `The server is busy. Press Regenerate in ${retryAfter ? seconds : "a moment"}.`,
    504: "The server had no time for this answer. Press Regenerate in a moment.",
  };
  return known[status] ?? `The server failed: ${message}. Press Regenerate to ask again.`;
}
