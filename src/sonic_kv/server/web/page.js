import { listDialogues } from "./dialogues.js";
import { markdown } from "./markdown.js";
import { element, percent, showServer, showSession, showTurns, size } from "./panel.js";

const $ = id => document.getElementById(id);
const SAVED = "sonic-kv", LONGEST = 1024, MOST = 0.95;
const NAMES = { user: "You", assistant: "Model", system: "System", tool: "Tool" };
const newId = () => crypto.randomUUID?.() ?? `page-${Date.now()}-${String(Math.random()).slice(2)}`;

// A tab has a dialogue of its own, also after a reload; the key is for all tabs.
// It remembers the messages too: the server's session may be gone, and has no replies that were stopped. A `detached`
// dialogue goes on under a name that the server does not know yet.
const fresh = () => ({ id: newId(), turns: [], detached: false });
let state = { ...fresh(), ratio: null, key: "", showKept: false };
let served = null, messages = [], session = null, kept = [], running = null, starting = null, timer = 0;
let moved = false; // the slider was, since the server was told

function remember() {
  sessionStorage.setItem(SAVED, JSON.stringify({ ...state, messages, key: undefined }));
  localStorage.setItem(`${SAVED}-key`, state.key);
}

async function call(path, options = {}) {
  const headers = { "content-type": "application/json", "x-session-id": state.id };
  if (state.key) headers.authorization = `Bearer ${state.key}`;
  let response;
  try { response = await fetch(path, { ...options, headers }); }
  catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the server cannot be reached: is it still running?");
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => null);
  const error = new Error(problem?.error?.message ?? `the server answered ${response.status}`);
  error.status = response.status;
  throw error;
}

function say(error) {
  $("say").replaceChildren();
  if (!error) return;
  const refused = error.status === 401;
  $("say").append(refused ? (state.key ? "This API key is not valid here: give another." : "This server asks for an API key.")
    : error.message);
  if (!refused) return;
  const field = element("input");
  field.type = "password";
  field.autocomplete = "off";
  field.onchange = () => { state.key = field.value.trim(); remember(); starting = start(); };
  $("say").append(element("label", "", " API key", field));
  field.focus();
}

// --- the dialogue ---------------------------------------------------------------------------

function button(name, act, label) {
  const made = element("button", "", name);
  made.type = "button";
  if (label) made.setAttribute("aria-label", label);
  made.onclick = () => act(made);
  return made;
}

async function copy(text, made) {
  const before = made.textContent;
  try { await navigator.clipboard.writeText(text); made.textContent = "Copied"; }
  catch { made.textContent = "Not allowed here"; }
  setTimeout(() => { made.textContent = before; }, 1500);
}

/** A message's text as it is shown: what is kept of it, Markdown, or as it was typed. */
function body(message, tokens) {
  if (tokens) return [heldText(tokens)];
  if (message.role !== "assistant") return [element("p", "typed", message.content)];
  const shown = markdown(message.content);
  for (const block of shown.querySelectorAll("pre")) {
    const frame = element("div", "code");
    block.replaceWith(frame);
    frame.append(block, button("Copy", made => copy(block.textContent, made), "Copy the code"));
  }
  return [shown];
}

function heldText(tokens) {
  const text = element("p", "typed");
  for (const { text: piece, share } of tokens) {
    const level = share === 0 ? 0 : share >= 0.995 ? 4 : share >= 0.5 ? 3 : share >= 0.2 ? 2 : 1;
    const token = element("span", `token k${level}`, piece);
    token.title = share === 0 ? "dropped" : `kept by ${percent(share)} of all heads`;
    text.append(token);
  }
  const mean = tokens.reduce((sum, one) => sum + one.share, 0) / Math.max(tokens.length, 1);
  const gone = tokens.filter(one => one.share === 0).length;
  const words = `${tokens.length} tokens, ${percent(mean)} kept on average over all heads${gone ? `, ${gone} by none` : ""}.`;
  return element("div", "", text, element("p", "note", words));
}

function line(message, tokens) {
  const made = element("article", message.role, element("h2", "", NAMES[message.role] ?? message.role));
  made.append(element("div", "body", ...body(message, tokens)));
  $("log").append(made);
  return made;
}

const down = () => { $("log").scrollTop = $("log").scrollHeight; };
const atEnd = () => $("log").scrollHeight - $("log").scrollTop - $("log").clientHeight < 40;

/** Buttons under replies: each can be copied, the newest made again. */
function tools() {
  document.querySelectorAll("#log .tools").forEach(one => one.remove());
  if (running) return;
  const shown = [...document.querySelectorAll("#log article")];
  messages.forEach((message, i) => {
    if (message.role !== "assistant" || !shown[i]) return;
    const row = element("div", "tools", button("Copy", made => copy(message.content, made), "Copy this reply"));
    if (i === messages.length - 1 && messages.at(-2)?.role === "user") row.append(button("Another reply", again));
    shown[i].append(row);
  });
}

function hint() {
  return element("div", "hint", element("p", "", "Say something."),
    element("p", "", element("span", "wide", "The panel on the right"), element("span", "narrow", "“Memory” above"),
      " shows what the model's memory of this dialogue takes, and what it would take without compression. “",
      element("span", "wide", "Show what is kept"), element("span", "narrow", "What is kept"),
      "” marks in the text which tokens are still in it."));
}

function showLog() {
  const end = atEnd(), place = $("log").scrollTop;
  $("log").replaceChildren();
  if (!messages.length) $("log").append(hint());
  messages.forEach((message, i) => line(message, session?.messages[i]?.content === message.content ? kept[i] : undefined));
  tools();
  if (end) down(); else $("log").scrollTop = place;
}

async function showKept() {
  $("kept").setAttribute("aria-pressed", state.showKept);
  $("legend").hidden = !state.showKept;
  kept = [];
  if (state.showKept && session && !state.detached) {
    try { kept = (await (await call(`v1/sessions/${state.id}/kept`)).json()).messages.map(one => one.tokens); }
    catch (error) { say(error); }
  }
  if (!running) showLog();
}

function showCache() {
  showSession(session);
  showTurns(state.turns);
  showSlider();
}

/** Put the slider where the dialogue is, beyond its usual end too. */
function slideTo(ratio) {
  $("ratio").max = Math.max(MOST, ratio);
  $("ratio").value = ratio;
}

function showSlider() {
  $("most-removed").textContent = percent($("ratio").max);
  const text = percent($("ratio").value);
  $("percent").textContent = text;
  $("ratio").setAttribute("aria-valuetext", `${text} removed`);
  if (served) showServer(served, +$("ratio").value);
}

function show(found, turn) {
  session = found;
  if (!moved) {
    state.ratio = found.max_damage === null ? found.compression_ratio : null; // null: as the server has it
    slideTo(found.compression_ratio);
  }
  const point = [found.bytes, found.full_bytes];
  if (turn || !state.turns.length) state.turns.push(point);
  else state.turns[state.turns.length - 1] = point;
  remember();
  showCache();
}

// --- what is asked for ----------------------------------------------------------------------

function again() {
  if (running || messages.at(-1)?.role !== "assistant" || messages.at(-2)?.role !== "user") return;
  send(messages.at(-2).content, true);
}

/** The events of a stream, as they come. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the connection broke: send the message again");
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part === "data: [DONE]") return;
      const event = JSON.parse(part.slice(6));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

async function send(text, other = false) {
  await starting;
  const before = messages, mine = { role: "user", content: text };
  const history = other ? messages.slice(0, -2) : messages;
  let reply = "", frame = 0;
  say();
  running = new AbortController();
  messages = history;
  showLog();
  if (!history.length) $("log").replaceChildren();
  line(mine);
  const shown = line({ role: "assistant", content: "" });
  const draw = () => { frame = 0; const end = atEnd();
    shown.lastChild.replaceChildren(...body({ role: "assistant", content: reply })); if (end) down(); };
  shown.classList.add("waiting");
  $("send").textContent = "Stop";
  down();
  try {
    const asked = { model: served?.id, messages: [...history, mine], stream: true, max_tokens: LONGEST };
    if (other) asked.temperature = 0.9;
    if ((!session || state.detached) && state.ratio !== null) {
      asked.sonic = { compression_ratio: state.ratio };
      moved = false;
    }
    const response = await call("v1/chat/completions", { method: "POST", body: JSON.stringify(asked), signal: running.signal });
    for await (const event of events(response)) {
      reply += event.choices[0]?.delta.content ?? "";
      frame ||= requestAnimationFrame(draw);
    }
    messages = [...history, mine, { role: "assistant", content: reply }];
    state.detached = false;
    show(await (await call(`v1/sessions/${state.id}`, { signal: running.signal })).json(), !other);
    $("told").textContent = `Model: ${reply}`;
  } catch (error) {
    if (messages !== history) { // there is another dialogue by now
    } else if (error.name === "AbortError" && reply) { // what was written stays, and is read with the next message
      messages = [...history, mine, { role: "assistant", content: reply }];
    } else {
      messages = before;
      if (!other && !$("text").value) { $("text").value = text; fitText(); }
    }
    if (error.name !== "AbortError") say(error);
    remember();
  } finally {
    cancelAnimationFrame(frame);
    running = null;
    $("send").textContent = "Send";
    if (state.showKept) await showKept(); else showLog();
    if (moved) squeeze();
  }
}

async function squeeze() {
  if (!session || running || state.detached) return;
  try {
    const before = session, ratio = $("ratio").value, body = JSON.stringify({ compression_ratio: +ratio });
    const found = await (await call(`v1/sessions/${state.id}`, { method: "PATCH", body })).json();
    moved = $("ratio").value !== ratio;
    show(found, false);
    $("effect").textContent = before.entries === session.entries ? "From the next segment on."
      : `${before.entries} → ${session.entries} entries, ${size(before.bytes - session.bytes)} freed, without running the model.`;
    if (state.showKept) showKept();
    say();
  } catch (error) { say(error); }
}

async function start() {
  say();
  try {
    served = (await (await call("v1/models")).json()).data[0];
    if (state.ratio === null) slideTo(served.compression_ratio);
    $("model").textContent = served.id;
    if (state.turns.length) {
      const found = await (await call(`v1/sessions/${state.id}`)).json();
      if (!messages.length) messages = found.messages;
      show(found, false);
    }
  } catch (error) { if (error.status !== 404) say(error); }
  showCache();
  await showKept();
  down();
}

// A tab that was duplicated has another's dialogue: it goes on under a name of its own.
function watchTabs() {
  if (!("BroadcastChannel" in window)) return;
  const tabs = new BroadcastChannel(SAVED), me = newId();
  tabs.onmessage = ({ data: { asks, taken, from, to } }) => {
    if (asks === state.id && from !== me) tabs.postMessage({ taken: asks, to: from });
    if (taken === state.id && to === me) { Object.assign(state, { id: newId(), detached: messages.length > 0 }); remember(); }
  };
  return () => tabs.postMessage({ asks: state.id, from: me });
}

// --- what people do -------------------------------------------------------------------------

function fitText() {
  $("text").style.height = "auto";
  $("text").style.height = `${Math.min($("text").scrollHeight + 2, innerHeight * 0.3)}px`;
}

function showPanel(open) {
  document.body.classList.toggle("panel", open);
  $("panel").setAttribute("aria-expanded", open);
  if (open) showTurns(state.turns);
}

$("form").onsubmit = event => {
  event.preventDefault();
  if (running) { running.abort(); return; }
  const text = $("text").value.trim();
  if (!text) return;
  $("text").value = "";
  fitText();
  send(text);
};
$("text").oninput = fitText;
$("text").onkeydown = event => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !running) {
    event.preventDefault();
    $("form").requestSubmit();
  }
};
document.onkeydown = event => {
  if ($("dialogues").open) return;
  if (event.key === "Escape") { if (running) running.abort(); else showPanel(false); }
  const pressed = event.altKey && { KeyN: "new", KeyK: "kept" }[event.code];
  if (pressed) { event.preventDefault(); $(pressed).click(); }
};
$("kept").onclick = () => { state.showKept = !state.showKept; remember(); showKept(); };
$("panel").onclick = () => showPanel(!document.body.classList.contains("panel"));
$("ratio").oninput = () => {
  showSlider();
  state.ratio = +$("ratio").value;
  moved = true;
  clearTimeout(timer);
  timer = setTimeout(squeeze, 120);
};
$("length").onchange = showSlider;
/** Leave the dialogue for a new one, or for one that the server knows. */
function turnTo(found) {
  running?.abort();
  state = { ...state, ...fresh(), ...(found && { id: found.id }) };
  [messages, session, kept, moved] = [found?.messages ?? [], null, [], false];
  say();
  remember();
  showPanel(false);
  if (found) show(found, true); else showCache();
  showKept().then(down);
  $("text").focus();
}

$("new").onclick = () => turnTo(null);
listDialogues(call, async id => { turnTo(await (await call(`v1/sessions/${id}`)).json()); ask?.(); },
  id => { if (id === state.id) turnTo(null); });
addEventListener("resize", () => showTurns(state.turns));

try {
  const { messages: said = [], ...rest } = JSON.parse(sessionStorage.getItem(SAVED) ?? "{}");
  state = { ...state, ...rest, key: localStorage.getItem(`${SAVED}-key`) ?? "" };
  messages = said;
} catch { /* a fresh start */ }
if (state.ratio !== null) slideTo(state.ratio);
const ask = watchTabs();
remember();
starting = start();
starting.then(ask);
