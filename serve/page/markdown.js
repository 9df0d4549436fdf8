// Markdown to DOM nodes. The text is a stranger's: it becomes text nodes, never markup, and a link
// leads to http or https or is no link.

import { make } from "./dom.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const DIVIDER = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)+\|?\s*$/;
const DEEPEST = 12; // nesting that a stranger may ask for

const shown = new WeakMap(); // node -> the block it was made from

/** Show a text in a container. Blocks that did not change since the last call keep their nodes. */
export function render(container, text) {
  const blocks = split(text.split("\n"));
  blocks.forEach((block, index) => {
    const old = container.children[index];
    const source = block.lines.join("\n");
    if (old && shown.get(old) === source) return;
    const node = block.node();
    shown.set(node, source);
    if (old) old.replaceWith(node);
    else container.append(node);
  });
  while (container.children.length > blocks.length) container.lastElementChild.remove();
}

/** Blocks of lines: {lines, node()}. */
function split(lines, depth = 0) {
  const blocks = [];
  let at = 0;
  const block = (end, node) => {
    blocks.push({ lines: lines.slice(at, end), node });
    at = end;
  };
  while (at < lines.length) {
    const line = lines[at];
    let found;
    if (!line.trim()) {
      at += 1;
    } else if ((found = FENCE.exec(line))) {
      const [, fence, language] = found;
      const end = fenceEnd(lines, at + 1, fence);
      const code = lines.slice(at + 1, end).join("\n");
      block(Math.min(end + 1, lines.length), () => codeBlock(code, language));
    } else if ((found = HEADING.exec(line))) {
      const [, signs, text] = found;
      const level = Math.min(signs.length + 2, 6); // h1 and h2 are the page's
      block(at + 1, () => make(`h${level}`, {}, ...inline(text)));
    } else if (RULE.test(line)) {
      block(at + 1, () => make("hr"));
    } else if (QUOTE.test(line) && depth < DEEPEST) {
      const end = runOf(lines, at, (other) => QUOTE.test(other));
      const inner = lines.slice(at, end).map((other) => QUOTE.exec(other)[1]);
      block(end, () => make("blockquote", {}, ...nodes(inner, depth + 1)));
    } else if (ITEM.test(line) && depth < DEEPEST) {
      const end = listEnd(lines, at);
      const inner = lines.slice(at, end);
      block(end, () => list(inner, depth + 1));
    } else if (line.includes("|") && DIVIDER.test(lines[at + 1] ?? "")) {
      const end = runOf(lines, at, (other) => other.includes("|"));
      const rows = lines.slice(at, end);
      block(end, () => table(rows));
    } else {
      const end = at + 1 + runOf(lines.slice(at + 1), 0, (other) => !interrupts(other));
      const text = lines.slice(at, end).join("\n").trim();
      block(end, () => make("p", {}, ...inline(text)));
    }
  }
  return blocks;
}

function nodes(lines, depth) {
  return split(lines, depth).map((block) => block.node());
}

function runOf(lines, start, holds) {
  let end = start;
  while (end < lines.length && holds(lines[end])) end += 1;
  return end;
}

function fenceEnd(lines, start, fence) {
  return runOf(lines, start, (line) => {
    const text = line.trim();
    return !(text.startsWith(fence) && text.replaceAll(fence[0], "") === "");
  });
}

function interrupts(line) {
  const starts = [FENCE, HEADING, QUOTE, ITEM].some((pattern) => pattern.test(line));
  return !line.trim() || starts;
}

function codeBlock(code, language) {
  const pre = make("pre", { tabIndex: 0 }, make("code", {}, code)); // it may scroll
  const head = make("div", { className: "code-head" }, make("span", {}, language));
  return make("div", { className: "code" }, head, pre);
}

function indent(line) {
  return /^\s*/.exec(line)[0].length;
}

/** A list goes on over items, lines indented below them, and blank lines before either. */
function listEnd(lines, start) {
  const base = indent(lines[start]);
  const ordered = /\d/.test(ITEM.exec(lines[start])[2]);
  let end = start + 1;
  for (let at = start + 1; at < lines.length; at += 1) {
    const line = lines[at];
    if (!line.trim()) continue;
    const item = ITEM.exec(line);
    const deeper = indent(line) > base;
    const sibling = item && indent(line) === base && /\d/.test(item[2]) === ordered;
    const lazy = lines[at - 1].trim() && !interrupts(line);
    if (!deeper && !sibling && !lazy) break;
    end = at + 1;
  }
  return end;
}

function list(lines, depth) {
  const base = indent(lines[0]);
  const first = ITEM.exec(lines[0])[2];
  const items = [];
  for (const line of lines) {
    const item = indent(line) <= base ? ITEM.exec(line) : null;
    if (item) items.push([item[3]]);
    else items.at(-1).push(line);
  }
  const ordered = /\d/.test(first);
  const entries = items.map(([head, ...below]) => {
    const margin = Math.min(...below.filter((line) => line.trim()).map(indent), 8);
    const inner = [head, ...below.map((line) => line.slice(Math.min(margin, indent(line))))];
    return make("li", {}, ...nodes(inner, depth));
  });
  return make(ordered ? "ol" : "ul", ordered ? { start: Number.parseInt(first, 10) } : {}, ...entries);
}

function cells(row) {
  return row.trim().replace(/^\||\|$/g, "").split("|").map((cell) => inline(cell.trim()));
}

function table([head, , ...rows]) {
  const line = (tag, row) =>
    make("tr", {}, ...cells(row).map((cell) => make(tag, {}, ...cell)));
  const body = make("tbody", {}, ...rows.map((row) => line("td", row)));
  const whole = make("table", {}, make("thead", {}, line("th", head)), body);
  return make("div", { className: "wide", tabIndex: 0 }, whole);
}

const INLINE = new RegExp(
  [
    /(?<ticks>`+)(?<code>[^`]|[^`][\s\S]*?[^`])\k<ticks>(?!`)/,
    /\\(?<escaped>[!-/:-@[-`{-~])/,
    /!?\[(?<label>[^[\]]*)\]\((?<target>[^\s()]*(?:\([^\s()]*\)[^\s()]*)*)(?:\s+"[^"]*")?\)/,
    /(?<bare>https?:\/\/[^\s<>()[\]"'`*]*[^\s<>()[\]"'`*.,;:!?])/,
    /(?<two>\*\*|__)(?=\S)(?<strong>[\s\S]*?\S)\k<two>/,
    /~~(?=\S)(?<gone>[\s\S]*?\S)~~/,
    /(?<![\w*])\*(?=[^\s*])(?<star>[\s\S]*?[^\s*])\*(?!\*)/,
    /(?<!\w)_(?=[^\s_])(?<line>[\s\S]*?[^\s_])_(?!\w)/,
  ]
    .map((pattern) => pattern.source)
    .join("|"),
  "g",
);

/** Nodes of a line's text. */
function inline(text, depth = 0) {
  if (depth > DEEPEST) return [text];
  const found = [];
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    const { code, escaped, label, target, bare, strong, gone, star, line } = match.groups;
    found.push(text.slice(end, match.index));
    end = match.index + match[0].length;
    if (code !== undefined) found.push(make("code", {}, code));
    else if (escaped) found.push(escaped);
    else if (bare) found.push(...link(bare, [bare], bare));
    else if (target !== undefined) found.push(...link(target, inline(label, depth + 1), match[0]));
    else if (strong) found.push(make("strong", {}, ...inline(strong, depth + 1)));
    else if (gone) found.push(make("del", {}, ...inline(gone, depth + 1)));
    else found.push(make("em", {}, ...inline(star ?? line, depth + 1)));
  }
  found.push(text.slice(end));
  return found.filter((piece) => piece !== "");
}

function link(target, label, source) {
  let url = null;
  try {
    url = new URL(target); // a relative one would lead into this server
  } catch {
    return [source];
  }
  if (url.protocol !== "http:" && url.protocol !== "https:") return [source];
  const properties = { href: url.href, target: "_blank", rel: "noopener noreferrer" };
  return [make("a", properties, ...label)];
}
