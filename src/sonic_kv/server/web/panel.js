// The panel beside the dialogue: what its memory takes now, over its turns, by segment, and on this server.

const $ = id => document.getElementById(id);
const LENGTHS = [1024, 4096, 16384, 65536];

/** Bytes as people read them. */
export function size(bytes) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (bytes < 999.5) return `${+bytes.toPrecision(3)} ${unit}`;
    bytes /= 1000;
  }
  return `${+bytes.toPrecision(3)} TB`;
}

export const percent = share => `${Math.round(100 * share)} %`;

export function element(tag, name, ...children) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  node.append(...children);
  return node;
}

/** A session as `GET /v1/sessions/{id}` tells it, or null before the first turn. */
export function showSession(session) {
  const saved = session ? Math.max(session.saved, 0) : 0;
  $("instead").hidden = $("sum").hidden = !session;
  $("bytes").textContent = session ? size(session.bytes) : "Nothing yet";
  $("full").textContent = size(session?.full_bytes ?? 0);
  $("gauge").style.width = session ? `${100 * Math.min(session.bytes / session.full_bytes, 1)}%` : "0";
  $("saved").textContent = session && saved > 0.005 ? percent(saved) : "Nothing";
  $("entries").textContent = session?.entries ?? 0;
  $("tokens").textContent = session?.logical_tokens ?? 0;
  $("short").textContent = session ? (saved > 0.005 ? `−${percent(saved)}` : size(session.bytes)) : "";
  const damage = session?.predicted_damage;
  $("damage").hidden = typeof damage !== "number";
  if (typeof damage === "number")
    $("damage").textContent = `What is dropped is predicted to make each token of later replies ${
      +(100 * -Math.expm1(-damage)).toPrecision(2)} % less likely, on average (${+damage.toPrecision(2)} nats).`;
  $("segments").replaceChildren(...(session ? segments(session) : []));
}

function segments(session) {
  const rows = [];
  if (session.prefix > 1) rows.push([`${session.prefix} at the start`, session.prefix, session.prefix, "raw"]);
  for (const one of session.segments) rows.push([`${one.tokens} → ${Math.round(one.entries)}`, one.tokens, one.entries, ""]);
  if (session.open) rows.push([`${session.open} open`, session.open, session.open, "raw"]);
  const widest = Math.max(1, ...rows.map(row => row[1]));
  return rows.map(([label, tokens, entries, kind]) => {
    const all = element("span", "all", element("i", "held"));
    all.style.width = `${100 * tokens / widest}%`;
    all.firstChild.style.width = `${100 * Math.min(entries / Math.max(tokens, 1), 1)}%`;
    const row = element("li", kind, element("span", "track", all), element("span", "", label));
    row.title = `${tokens} tokens, ${Math.round(entries)} entries kept`;
    return row;
  });
}

/** The chart: for every turn [bytes, bytes with full context]. */
export function showTurns(turns) {
  const chart = $("chart"), newest = turns.at(-1), width = chart.clientWidth || 340, height = 150;
  chart.replaceChildren();
  chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
  chart.setAttribute("aria-label", newest
    ? `Memory over ${turns.length} turns: ${size(newest[1])} with full context, ${size(newest[0])} kept` : "Memory over turns");
  const add = (kind, attributes, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", kind);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text) node.textContent = text;
    chart.append(node);
  };
  const left = 4, right = width - 8, bottom = height - 20, top = 34;
  add("line", { x1: left, x2: right, y1: bottom, y2: bottom, class: "axis" });
  add("text", { x: left, y: height - 4 }, newest ? "turn 1" : "Say something: each turn adds a point.");
  if (!newest) return;
  if (turns.length > 1) add("text", { x: right, y: height - 4, "text-anchor": "end" }, `turn ${turns.length}`);
  const most = Math.max(...turns.flat());
  const places = column => turns.map((turn, i) => [left + 4 + (right - left - 8) * (turns.length > 1 ? i / (turns.length - 1) : 1),
    bottom - (bottom - top) * turn[column] / most]);
  const path = points => points.map(point => point.map(n => +n.toFixed(1)).join(",")).join(" ");
  const full = places(1), kept = places(0);
  add("polygon", { points: path([...full, ...kept.toReversed()]), class: "saved" });
  [["full", full, 1], ["kept", kept, 0]].forEach(([name, points]) => {
    add("polyline", { points: path(points), class: name });
    const step = Math.ceil(points.length / 40);
    points.forEach(([x, y], i) => { if (i % step === 0 || i === points.length - 1) add(name === "full" ? "rect" : "circle",
      name === "full" ? { x: x - 3, y: y - 3, width: 6, height: 6, class: name } : { cx: x, cy: y, r: 3.5, class: name }); });
  });
  add("text", { x: left, y: 12, id: "most", class: "full" }, `■ ${size(newest[1])} with full context`);
  add("text", { x: left, y: 27, id: "now", class: "kept" }, `● ${size(newest[0])} kept`);
}

/** How many dialogues fit into the server's memory, at the compression of the slider. */
export function showServer(served, ratio) {
  if (!$("length").options.length) {
    for (const length of LENGTHS) $("length").append(element("option", "", length.toLocaleString("en")));
    LENGTHS.forEach((length, i) => { $("length").options[i].value = length; });
    $("length").value = 4096;
  }
  const length = +$("length").value, { bytes_per_token: token, bytes_per_entry: entry, kv_memory: memory } = served;
  const fit = bytes => `${Math.floor(memory / bytes).toLocaleString("en")} × ${size(bytes)}`;
  $("limit").textContent = size(memory);
  $("fit-full").textContent = fit(length * token);
  $("fit-ratio").textContent = percent(ratio);
  $("fit").textContent = fit(Math.max(1, Math.round(length * (1 - ratio))) * (ratio ? entry : token));
}
