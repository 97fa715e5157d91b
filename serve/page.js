// The page asks the API that it stands beside, as any client does: every press is one request for each
// answer, so any replica may take it, and a key that the browser was asked for goes along by itself.

const asking = {};

// The answer of `model` as it is written, into the box of that id; resolves to all of it.
async function ask(model, box, prompt, system, temperature, top_p, most) {
  const field = document.querySelector(`#${box} textarea`);
  const show = (text) => {
    field.value = text;
    field.scrollTop = field.scrollHeight;
    return text;
  };
  asking[box]?.abort();
  const controller = (asking[box] = new AbortController());
  show("");
  if (!prompt?.trim()) return show("Type a prompt first.");
  const messages = [{ role: "user", content: prompt }];
  if (system?.trim()) messages.unshift({ role: "system", content: system });
  const body = { model, messages, temperature, top_p, max_tokens: most, stream: true };
  try {
    return await stream(body, controller.signal, show);
  } catch (error) {
    return error.name === "AbortError" ? field.value : show(`error: ${error.message}`);
  }
}

async function stream(body, signal, show) {
  const response = await fetch("v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) {
    const { error } = await response.json().catch(() => ({ error: { message: response.statusText } }));
    // What is left of the context is less than was asked for: all of that, then.
    const isTooLong = error.code === "context_length_exceeded" && error.param === "max_tokens";
    if (isTooLong && body.max_tokens) {
      return stream({ ...body, max_tokens: undefined }, signal, show);
    }
    throw new Error(error.message);
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return text;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: {")) continue;
      const part = JSON.parse(line.slice(6));
      if (part.error) throw new Error(part.error.message);
      text += part.choices[0]?.delta.content ?? "";
    }
    show(text);
  }
}

// Of the first model alone.
async function generate(model, ...given) {
  document.body.classList.remove("comparing");
  asking.other?.abort();
  return ask(model, "answer", ...given);
}

// Of two models, at the same time, beside each other.
async function compare(model, other, ...given) {
  document.body.classList.add("comparing");
  return Promise.all([ask(model, "answer", ...given), ask(other, "other", ...given)]);
}
