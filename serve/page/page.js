// The page: a conversation with one model, or with two side by side. It is stored in this tab's
// sessionStorage only. With each prompt the whole conversation is sent to this server's API.

import { streamAnswer } from "./api.js";
import { showMarkdown } from "./markdown.js";

const byId = (id) => document.getElementById(id);
const [prompt, settings, turnList, stop] = ["prompt", "settings", "turns", "stop"].map(byId);
const server = JSON.parse(byId("server").textContent);
const STORE = `conversation of ${location.pathname}`;
const CUT = "The answer was cut: it reached Max tokens, the model's context or the time limit.";
const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];

// A turn is {prompt, answers}, and an answer {model, text, note, isError, isWriting}.
const turns = [];
const running = new Set(); // an AbortController for each answer that is being written
const views = new WeakMap(); // the element of each answer
const queued = new Set(); // answers that will be shown with the next frame

// The conversation.

async function send(text) {
  const models = [byId("model").value, byId("second").value].filter(Boolean);
  const turn = { prompt: text, answers: models.map((model) => ({ model, text: "" })) };
  turns.push(turn);
  showTurn(turn);
  scrollToEnd();
  await Promise.all(turn.answers.map((_, pane) => write(turn, pane)));
  announce(turn, turn.answers);
}

async function regenerate(turn, pane) {
  const answer = turn.answers[pane];
  const model = byId(pane ? "second" : "model").value || answer.model;
  Object.assign(answer, { model, text: "", note: "", isError: false });
  await write(turn, pane);
  announce(turn, [answer]);
}

/** Requests the answer of one pane and shows it as it comes. If it fails, the text so far stays. */
async function write(turn, pane) {
  const answer = turn.answers[pane];
  const controller = new AbortController();
  const body = { model: answer.model, messages: messages(turn, pane), ...chosenNumbers() };
  answer.isWriting = true;
  running.add(controller);
  byId("status").textContent = "The answer is being written.";
  showBusy();
  showAnswer(answer);
  try {
    const reason = await streamAnswer(body, controller.signal, (text) => {
      answer.text += text;
      showSoon(answer);
    });
    const emptyNote = answer.text ? "" : "The model wrote nothing.";
    answer.note = reason === "length" ? CUT : emptyNote;
  } catch (error) {
    answer.isError = error.name !== "AbortError";
    answer.note = answer.isError ? error.message : "Stopped.";
  } finally {
    answer.isWriting = false;
    running.delete(controller);
    showBusy();
    keepAtEnd(() => showAnswer(answer));
    save();
  }
}

/** Returns the messages up to a turn, as the model of this pane gets them. */
function messages(last, pane) {
  const system = settings.elements.system.value;
  const sent = system.trim() ? [{ role: "system", content: system }] : [];
  for (const turn of turns.slice(0, turns.indexOf(last))) {
    const answer = turn.answers[pane] ?? turn.answers[0];
    // Chat templates require an answer after each prompt, so we skip turns without an answer.
    if (!answer.text) continue;
    sent.push({ role: "user", content: turn.prompt });
    sent.push({ role: "assistant", content: answer.text });
  }
  return [...sent, { role: "user", content: last.prompt }];
}

/** Returns the settings that have a value. The server chooses the others. */
function chosenNumbers() {
  const given = NUMBERS.filter((name) => settings.elements[name].value !== "");
  return Object.fromEntries(given.map((name) => [name, settings.elements[name].valueAsNumber]));
}

function showBusy() {
  const isBusy = running.size > 0;
  // A hidden button loses the focus, so we move it to the prompt.
  if (document.activeElement === stop) prompt.focus();
  document.body.classList.toggle("busy", isBusy);
  stop.hidden = !isBusy;
  byId("generate").hidden = isBusy;
}

const stopAll = () => running.forEach((controller) => controller.abort());

// Showing the conversation.

function fromTemplate(id) {
  return byId(id).content.cloneNode(true).firstElementChild;
}

function showTurn(turn) {
  const element = fromTemplate("turn-template");
  element.querySelector(".prompt").textContent = turn.prompt;
  turn.answers.forEach((answer, pane) => {
    const view = fromTemplate("answer-template");
    views.set(answer, view);
    view.addEventListener("click", (event) => act(event.target, turn, pane));
    element.querySelector(".answers").append(view);
    showAnswer(answer);
  });
  turnList.append(element);
}

function showAnswer(answer) {
  const view = views.get(answer);
  const find = (selector) => view.querySelector(selector);
  find("h2").textContent = answer.model;
  find(".note").textContent = answer.note ?? "";
  find(".note").classList.toggle("error", Boolean(answer.isError));
  view.classList.toggle("writing", Boolean(answer.isWriting));
  view.setAttribute("aria-busy", Boolean(answer.isWriting));
  view.setAttribute("aria-label", `Answer of ${answer.model}`);
  find("[data-action=copy]").hidden = !answer.text;
  showMarkdown(find(".text"), answer.text);
}

/** Shows an answer with the next frame, however many pieces arrive until then. */
function showSoon(answer) {
  if (queued.has(answer)) return;
  queued.add(answer);
  requestAnimationFrame(() => {
    queued.delete(answer);
    keepAtEnd(() => showAnswer(answer));
  });
}

/** Changes the page and scrolls to its end, unless the reader has scrolled up. */
function keepAtEnd(change) {
  const root = document.documentElement;
  const isAtEnd = root.scrollHeight - root.scrollTop - root.clientHeight < 80;
  change();
  if (isAtEnd) scrollToEnd();
}

function scrollToEnd() {
  scrollTo(0, document.documentElement.scrollHeight);
}

/** Gives whole answers to screen readers, which should not read each token. */
function announce(turn, answers) {
  const lines = answers.map(({ model, text, note }) => `${model}: ${text} ${note}`);
  if (turns.includes(turn)) byId("status").textContent = lines.join("\n");
}

function act(button, turn, pane) {
  const { action } = button.dataset;
  if (action === "copy") copy(button, turn.answers[pane].text);
  if (action === "copy-code") copy(button, button.closest(".code").querySelector("code").textContent);
  if (action !== "regenerate" || !settingsAreValid()) return;
  prompt.focus();
  regenerate(turn, pane);
}

async function copy(button, text) {
  const label = button.textContent;
  const isCopied = await toClipboard(text);
  button.textContent = isCopied ? "Copied" : "Can't copy";
  byId("status").textContent = button.textContent;
  button.disabled = true;
  await new Promise((resolve) => setTimeout(resolve, 1500));
  button.textContent = label;
  button.disabled = false;
}

async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Over plain HTTP browsers offer no clipboard API, so we copy a selection.
    const field = document.createElement("textarea");
    field.value = text;
    document.body.append(field);
    field.select();
    const isCopied = document.execCommand("copy");
    field.remove();
    return isCopied;
  }
}

// Input.

function submit() {
  const text = prompt.value;
  prompt.focus();
  if (!text.trim() || running.size || !settingsAreValid()) return;
  prompt.value = "";
  send(text);
}

function settingsAreValid() {
  if (settings.checkValidity()) return true;
  settings.showPopover();
  settings.reportValidity();
  return false;
}

function startAnew() {
  stopAll();
  turns.length = 0;
  turnList.replaceChildren();
  byId("status").textContent = "A new conversation has begun.";
  save();
  prompt.focus();
}

// The default value of an option is its text with fewer spaces, so we set the value.
const optionFor = (name) => new Option(name, name);

/** Offers all models but the first one as the second one. */
function offerSecondModels() {
  const [first, second] = [byId("model"), byId("second")];
  const others = server.models.filter((name) => name !== first.value);
  const chosen = others.includes(second.value) ? second.value : "";
  const noModel = second.options[0];
  second.replaceChildren(noModel, ...others.map(optionFor));
  second.value = chosen;
}

function save() {
  const values = Object.fromEntries(new FormData(settings));
  const chosen = [byId("model").value, byId("second").value];
  try {
    sessionStorage.setItem(STORE, JSON.stringify({ turns, values, chosen }));
  } catch {
    byId("status").textContent = "The browser can't store this conversation. Reloading the page loses it.";
  }
}

function readStore() {
  try {
    return JSON.parse(sessionStorage.getItem(STORE)) ?? {};
  } catch {
    return {}; // a browser may refuse to store anything
  }
}

function restore() {
  const { turns: keptTurns = [], values = {}, chosen: [first, second] = [] } = readStore();
  if (server.models.includes(first)) byId("model").value = first;
  offerSecondModels();
  const isOffered = [...byId("second").options].some(({ value }) => value === second);
  if (isOffered) byId("second").value = second;
  for (const [name, value] of Object.entries(values)) settings.elements[name].value = value;
  for (const turn of keptTurns) {
    for (const answer of turn.answers.filter(({ isWriting }) => isWriting)) {
      answer.note = "You left the page while this was written. Press Regenerate to try again.";
      answer.isWriting = false;
    }
    turns.push(turn);
    showTurn(turn);
  }
  scrollToEnd();
}

function showExamples() {
  byId("examples").hidden = !server.examples.length;
  for (const text of server.examples) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.addEventListener("click", () => {
      prompt.value = text;
      prompt.focus();
    });
    byId("examples").append(button);
  }
}

byId("model").append(...server.models.map(optionFor));
byId("comparison").hidden = server.models.length < 2;
byId("model").addEventListener("change", offerSecondModels);
byId("new").addEventListener("click", startAnew);
stop.addEventListener("click", stopAll);
addEventListener("pagehide", save);
byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
settings.addEventListener("submit", (event) => event.preventDefault());
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !settings.matches(":popover-open")) stopAll();
});
restore();
showExamples();
