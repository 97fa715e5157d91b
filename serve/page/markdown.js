// Shows Markdown. It makes elements and text nodes and reads no HTML, so whatever a model writes
// stays text. An unfinished text is shown as far as it goes.

const MAX_DEPTH = 6; // the deepest nesting of lists, quotes and emphasis
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^\s`]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(\S.*)$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^(\s*)(?:[-*+]|(\d{1,9})[.)])(?:\s+|$)/;
const DELIMITERS = /^\|?:?-+:?(?:\|:?-+:?)*\|?$/;
const READERS = [readFence, readHeading, readRule, readQuote, readTable, readList, readParagraph];
// A text may have many marks that never close, so each span has a limit to stay fast.
const INLINE = new RegExp(
  [
    /\\(?<escaped>[!-\/:-@[-`{-~])/,
    /(?<!`)(?<ticks>`+)(?!`)(?<code>[^]{1,2000}?)(?<!`)\k<ticks>(?!`)/,
    /!?\[(?<label>[^[\]]{0,500})\]\((?<url>[^\s()]{1,2000}(?:\([^\s()]*\)[^\s()]*)?)(?: +"[^"]*")?\)/,
    /(?<address>https?:\/\/[^\s<>"`]{0,2000}[^\s<>"`.,;:!?)\]*_'])/,
    /\*\*(?=\S)(?<strong>[^]{1,2000}?)(?<=\S)\*\*(?!\*)/,
    /(?<!\w)__(?=\S)(?<stronger>[^]{1,2000}?)(?<=\S)__(?!\w)/,
    /\*(?=[^\s*])(?<em>(?:[^*]|\*\*[^*]+\*\*){1,2000})(?<=\S)\*(?!\*)/,
    /(?<!\w)_(?=[^\s_])(?<emphasis>[^_]{1,2000})(?<=\S)_(?!\w)/,
    /~~(?=\S)(?<del>[^]{1,2000}?)(?<=\S)~~/,
    /(?<br><br ?\/?>)/,
  ].map((pattern) => pattern.source).join("|"),
  "g",
);

/** Shows `text` in `parent`. Blocks that did not change since the last call are kept. */
export function showMarkdown(parent, text) {
  const blocks = readBlocks(text.split(/\r?\n/), 0);
  const isSame = (block, index) => parent.children[index]?.markdown === block.source;
  let kept = 0;
  while (kept < blocks.length && isSame(blocks[kept], kept)) kept += 1;
  while (parent.children.length > kept) parent.lastElementChild.remove();
  for (const block of blocks.slice(kept)) {
    const element = block.build();
    element.markdown = block.source;
    parent.append(element);
  }
}

/** Returns a list of {source, build}, where `build` makes the element of a block. */
function readBlocks(lines, depth) {
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    if (isBlank(lines[at])) {
      at += 1;
      continue;
    }
    let block = null;
    for (const read of READERS) if ((block = read(lines, at, depth))) break;
    blocks.push({ source: lines.slice(at, block.end).join("\n"), build: block.build });
    at = block.end;
  }
  return blocks;
}

const isBlank = (line) => line.trim() === "";
const indent = (line) => /^\s*/.exec(line)[0].replaceAll("\t", "    ").length;
const dedent = (line, by) =>
  line.replace(/^\s+/, (space) => space.replaceAll("\t", "    ").slice(by));
const buildAll = (lines, depth) => readBlocks(lines, depth).map((block) => block.build());

function make(tag, ...children) {
  const element = document.createElement(tag);
  element.append(...children);
  return element;
}

function readFence(lines, at) {
  const [, fence, language] = FENCE.exec(lines[at]) ?? [];
  if (!fence) return null;
  const isEnd = (line) => line.trim().startsWith(fence) && !line.trim().replaceAll(fence[0], "");
  let end = at + 1;
  while (end < lines.length && !isEnd(lines[end])) end += 1;
  const build = () => {
    const copy = make("button", "Copy code");
    copy.type = "button";
    copy.dataset.action = "copy-code";
    const code = make("pre", make("code", lines.slice(at + 1, end).join("\n")));
    code.tabIndex = 0; // so that the keyboard can scroll it
    const block = make("div", make("div", make("span", language || "text"), copy), code);
    block.className = "code";
    return block;
  };
  return { end: Math.min(end + 1, lines.length), build };
}

function readHeading(lines, at) {
  const [, marks, text] = HEADING.exec(lines[at]) ?? [];
  // The page uses two levels of headings itself, so these start at the third.
  const tag = marks && `h${Math.min(marks.length + 2, 6)}`;
  return marks && { end: at + 1, build: () => make(tag, ...inline(text.replace(/ #+ *$/, ""), 0)) };
}

function readRule(lines, at) {
  return RULE.test(lines[at]) && { end: at + 1, build: () => make("hr") };
}

function readQuote(lines, at, depth) {
  if (depth >= MAX_DEPTH || !QUOTE.test(lines[at])) return null;
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inside = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return { end, build: () => make("blockquote", ...buildAll(inside, depth + 1)) };
}

function isTable(lines, at) {
  const delimiters = lines[at + 1]?.replace(/\s/g, "") ?? "";
  return lines[at].includes("|") && delimiters.includes("|") && DELIMITERS.test(delimiters);
}

function readTable(lines, at) {
  if (!isTable(lines, at)) return null;
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) end += 1;
  const aligned = cells(lines[at + 1]).map((mark) =>
    mark.endsWith(":") ? (mark.startsWith(":") ? "center" : "right") : "",
  );
  const row = (tag) => (line) => {
    const made = cells(line).map((cell) => make(tag, ...inline(cell, 0)));
    made.forEach((cell, column) => (cell.className = aligned[column] ?? ""));
    return make("tr", ...made);
  };
  const build = () => {
    const head = make("thead", row("th")(lines[at]));
    const body = make("tbody", ...lines.slice(at + 2, end).map(row("td")));
    const box = make("div", make("table", head, body));
    box.className = "table";
    box.tabIndex = 0;
    return box;
  };
  return { end, build };
}

function cells(line) {
  const inside = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return inside.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function readList(lines, at, depth) {
  const first = depth < MAX_DEPTH && ITEM.exec(lines[at]);
  if (!first) return null;
  const isOrdered = first[2] !== undefined;
  const isNext = (line) => {
    const item = ITEM.exec(line);
    return item && (item[2] !== undefined) === isOrdered && !RULE.test(line);
  };
  const items = [];
  let end = at;
  for (let next = at; next < lines.length && isNext(lines[next]); ) {
    end = endOfItem(lines, next);
    const marker = ITEM.exec(lines[next])[0];
    const rest = lines.slice(next + 1, end).map((line) => dedent(line, marker.length));
    items.push([lines[next].slice(marker.length), ...rest]);
    for (next = end; next < lines.length && isBlank(lines[next]); ) next += 1;
  }
  const build = () => {
    const list = make(isOrdered ? "ol" : "ul");
    if (isOrdered) list.start = Number(first[2]);
    list.append(...items.map((item) => make("li", ...buildAll(item, depth + 1))));
    return list;
  };
  return { end, build };
}

/** Returns the end of the list item at a line: the first line that does not belong to the item. */
function endOfItem(lines, at) {
  const inner = ITEM.exec(lines[at])[1].length + 2;
  let end = at + 1;
  for (let next = end; next < lines.length; next += 1) {
    if (isBlank(lines[next])) continue;
    const goesOn = next === end && !ITEM.test(lines[next]) && !beginsBlock(lines, next);
    if (indent(lines[next]) < inner && !goesOn) break;
    end = next + 1;
  }
  return end;
}

function beginsBlock(lines, at) {
  const line = lines[at];
  const item = ITEM.exec(line);
  const beginsList = item && (item[2] === undefined || item[2] === "1" || item[1]);
  return [FENCE, HEADING, RULE, QUOTE].some((p) => p.test(line)) || beginsList || isTable(lines, at);
}

function readParagraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && !isBlank(lines[end]) && !beginsBlock(lines, end)) end += 1;
  const text = lines.slice(at, end).map((line) => line.trim()).join("\n");
  return { end, build: () => make("p", ...inline(text, 0)) };
}

/** Returns nodes for a text with emphasis, code and links. */
function inline(text, depth) {
  if (depth > MAX_DEPTH) return [text];
  const nodes = [];
  let at = 0;
  for (const match of text.matchAll(INLINE)) {
    nodes.push(text.slice(at, match.index), span(match[0], match.groups, depth + 1));
    at = match.index + match[0].length;
  }
  return [...nodes, text.slice(at)];
}

function span(source, found, depth) {
  if (found.escaped) return found.escaped;
  if (found.code) return make("code", found.code.replace(/^ (.*\S.*) $/, "$1"));
  if (found.address) return link(found.address, found.address);
  if (found.url) return /^https?:\/\//i.test(found.url) ? link(found.url, found.label) : source;
  if (found.br) return make("br");
  if (found.del) return make("del", ...inline(found.del, depth));
  const strong = found.strong ?? found.stronger;
  return strong
    ? make("strong", ...inline(strong, depth))
    : make("em", ...inline(found.em ?? found.emphasis, depth));
}

function link(url, label) {
  const anchor = make("a", label || url);
  anchor.href = url;
  anchor.rel = "noopener noreferrer";
  anchor.target = "_blank";
  return anchor;
}
