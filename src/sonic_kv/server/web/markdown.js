// Markdown → DOM nodes. Text becomes text nodes only, so nothing that a model writes can be HTML or a script.

const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?: +|$)(.*)$/;
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])(?: *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const DIVIDER = /^ *\|? *:?-+:? *(\| *:?-+:? *)*\|? *$/;
const INLINE = new RegExp([
  String.raw`\\([!-/:-@[-\x60{-~])`, // 1: an escaped sign
  "(`+)([^`]|[^`][^]{0,999}?[^`])\\2(?!`)", // 3: code
  String.raw`!?\[([^\[\]]{0,500})\]\(\s*<?([^\s()<>]{0,2000}(?:\([^\s()<>]{0,200}\))?[^\s()<>]{0,200})>?(?:\s+"[^"]{0,200}")?\s*\)`, // 4, 5
  String.raw`<?(https?:\/\/[^\s<>"\x60]{1,2000}[^\s<>"\x60.,:;!?)\]'*_])>?`, // 6: a bare address
  String.raw`(\*\*|(?<!\w)__)(?=\S)([^]{0,999}?\S)\7(?!\w|\*)`, // 8: strong
  String.raw`(?<!\w)([*_])(?=[^\s*_])([^]{0,999}?[^\s*\\])\9(?!\w)`, // 10: emphasis
  String.raw`~~(?=\S)([^]{0,999}?\S)~~`, // 11: struck out
].join("|"), "g");

const made = (tag, ...children) => { const node = document.createElement(tag); node.append(...children); return node; };

/** The blocks of a text, as nodes. */
export function markdown(text) {
  const all = document.createDocumentFragment();
  try { all.append(...blocks(text.replace(/\r\n?/g, "\n").replace(/\t/g, "    ").split("\n"))); }
  catch (error) { // thousands of quotes in quotes
    if (!(error instanceof RangeError)) throw error;
    all.append(made("p", text));
  }
  return all;
}

function blocks(lines) {
  const found = [];
  for (let i = 0; i < lines.length;) {
    const line = lines[i], fence = FENCE.exec(line), heading = HEADING.exec(line);
    if (!line.trim()) i++;
    else if (fence) {
      let end = i + 1;
      while (end < lines.length && !(lines[end].trim().startsWith(fence[1]) && !lines[end].trim().replace(/[`~]/g, ""))) end++;
      found.push(code(lines.slice(i + 1, end).join("\n"), fence[2]));
      i = end + 1;
    } else if (heading) {
      const node = made("h3", ...inline(heading[2]));
      node.className = `level${heading[1].length}`;
      found.push(node);
      i++;
    } else if (RULE.test(line)) { found.push(made("hr")); i++; }
    else if (QUOTE.test(line)) {
      const inner = [];
      for (; i < lines.length && QUOTE.test(lines[i]); i++) inner.push(QUOTE.exec(lines[i])[1]);
      found.push(made("blockquote", ...blocks(inner)));
    } else if (ITEM.test(line)) { const [node, next] = list(lines, i); found.push(node); i = next; }
    else if (line.includes("|") && DIVIDER.test(lines[i + 1] ?? "") && lines[i + 1].includes("-")) {
      const rows = [];
      for (; i < lines.length && lines[i].includes("|"); i++) rows.push(lines[i]);
      found.push(table(rows));
    } else {
      const text = [line];
      for (i++; i < lines.length && lines[i].trim() && !begins(lines[i]); i++) text.push(lines[i]);
      found.push(made("p", ...inline(text.map(one => one.trim()).join("\n"))));
    }
  }
  return found;
}

const begins = line => [FENCE, HEADING, RULE, QUOTE, ITEM].some(kind => kind.test(line));

function code(text, language) {
  const node = made("pre", made("code", text));
  if (language) node.dataset.language = language;
  node.tabIndex = 0; // it may scroll
  return node;
}

function list(lines, start) {
  const [, indent, mark] = ITEM.exec(lines[start]), ordered = /\d/.test(mark);
  const node = made(ordered ? "ol" : "ul");
  if (ordered && parseInt(mark) !== 1) node.start = parseInt(mark);
  let i = start;
  while (i < lines.length) {
    const item = ITEM.exec(lines[i]);
    if (!item || item[1].length > indent.length + 1 || item[1].length < indent.length) break;
    if (/\d/.test(item[2]) !== ordered || RULE.test(lines[i])) break;
    const inner = [item[3]], depth = indent.length + 2;
    for (i++; i < lines.length; i++) {
      const line = lines[i], deep = line.search(/\S/);
      if (deep < 0) {
        const next = lines.slice(i).find(one => one.trim());
        if (!next || next.search(/\S/) < depth) { if (next && ITEM.test(next)) continue; break; }
        inner.push("");
      } else if (deep >= depth) inner.push(line.slice(Math.min(deep, indent.length + item[2].length + 1)));
      else if (begins(line) || !lines[i - 1].trim()) break;
      else inner.push(line.trim());
    }
    const parts = blocks(inner);
    node.append(made("li", ...(parts[0]?.tagName === "P" ? [...parts[0].childNodes, ...parts.slice(1)] : parts)));
    while (i < lines.length && !lines[i].trim()) i++;
  }
  return [node, i];
}

function table(rows) {
  const cells = row => row.trim().replace(/^\||(?<!\\)\|$/g, "").split(/(?<!\\)\|/).map(one => one.trim().replace(/\\\|/g, "|"));
  const line = (tag, row) => made("tr", ...cells(row).map(one => made(tag, ...inline(one))));
  const node = made("table", made("thead", line("th", rows[0])), made("tbody", ...rows.slice(2).map(row => line("td", row))));
  const scroll = made("div", node);
  scroll.className = "scroll";
  scroll.tabIndex = 0;
  return scroll;
}

function inline(text) {
  const found = [];
  let at = 0;
  for (const match of text.matchAll(INLINE)) {
    plain(text.slice(at, match.index), found);
    const [whole, escaped, , quoted, label, target, address, , strong, , emphasis, struck] = match;
    if (escaped) found.push(escaped);
    else if (quoted !== undefined) found.push(made("code", quoted.replace(/\n/g, " ")));
    else if (target !== undefined) found.push(...link(target, inline(label || target).map(one => one.tagName === "A" ? one.textContent : one)));
    else if (address) found.push(...link(address, [address]));
    else if (strong) found.push(made("strong", ...inline(strong)));
    else if (emphasis) found.push(made("em", ...inline(emphasis)));
    else found.push(made("del", ...inline(struck)));
    at = match.index + whole.length;
  }
  plain(text.slice(at), found);
  return found;
}

function plain(text, into) {
  text.split("\n").forEach((line, number) => { if (number) into.push(made("br")); if (line) into.push(line); });
}

function link(target, children) {
  let url;
  try { url = new URL(target); } catch { return children; }
  if (!["http:", "https:", "mailto:"].includes(url.protocol)) return children;
  const node = made("a", ...children);
  node.href = url.href;
  node.target = "_blank";
  node.rel = "noopener noreferrer";
  return [node];
}
