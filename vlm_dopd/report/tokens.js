"use strict";
// The token page. Texts become text nodes and nothing else; figures come from the page's own JSON.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const list = byId("list"), detail = byId("detail");
const NARROW = "\u00a0", MINUS = "\u2212";
let words, columns;

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element && name !== "role") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

async function unpack() {
  const bytes = Uint8Array.from(atob(data.packed), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

// ---- figures

const fixed = (value, digits = 3) => value === null || value === undefined ? "–" : value.toFixed(digits).replace("-", MINUS);
const nats = (thousandths) => thousandths === null || thousandths === undefined ? "–" : fixed(thousandths / 1000);
const entropy = (hundredths) => hundredths === null || hundredths === undefined ? "–" : fixed(hundredths / 100, 2);
function percent(thousandths) {
  if (thousandths === null || thousandths === undefined) return "–";
  const share = 100 * Math.exp(thousandths / 1000);
  return (share >= 0.095 ? share.toFixed(1) : share.toPrecision(1).replace("e-", `e${MINUS}`)) + NARROW + "%";
}
function visible(text) {
  if (text === "") return "▫";
  return text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length));
}
function gap(number, place) {
  const pair = data.responses[number].gap_of;
  if (!pair) return null;
  const [student, teacher] = pair.map((role) => columns[number].l[role][place]);
  return student === null || teacher === null ? null : Math.abs(teacher - student);
}

function candidates(column, place) {  // the sampled token, then the others: [word, thousandths of a nat by role …]
  const found = [[column.t[place], ...column.of.map((role) => column.l[role][place])]], flat = column.k[place] ?? [];
  for (let start = 0; start < flat.length; start += column.of.length + 1) {
    const [word, ...values] = flat.slice(start, start + column.of.length + 1);
    found.push([word, ...values.map((value) => value === null ? null : 10 * value)]);
  }
  return found;
}

// ---- a response

const cards = new Map();
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) fill(entry.target);
}, { rootMargin: "900px" });

function card(number) {
  if (cards.has(number)) return cards.get(number);
  const one = data.responses[number];
  const facts = [`after step ${one.step}`, `sample ${one.sample}`, `response ${one.sibling + 1}`];
  if (one.mean !== null) facts.push(`mean gap ${fixed(one.mean)}`);
  if (one.reward !== null && one.reward !== undefined) facts.push(`reward ${fixed(one.reward, 2)}`);
  if (one.truncated) facts.push("cut off at the limit");
  if (one.reference) facts.push("reference completion");
  const element = make("article", { className: "response", "data-number": number },
    make("p", {}, make("bdi", {}, facts.join(" · "))),
    make("h2", {}, make("bdi", {}, one.question)));
  if (one.answer !== null) element.append(make("p", {}, "reference answer: ", make("bdi", {}, one.answer)));
  const tokens = make("div", { className: "tokens" });
  tokens.textContent = one.text;  // until it is on the screen
  const side = make("div", {});
  element.append(make("div", { className: "with" + (one.pictures.length ? " seen" : "") },
    ...(one.pictures.length ? [side] : []), make("div", {}, tokens, make("div", { className: "bar" }))));
  if (one.missing) element.append(make("p", {}, `${one.missing} picture(s) not at hand`));
  if (one.p) {
    element.append(make("details", {}, make("summary", {}, "p, as the privileged prompts hold it"),
      make("div", { className: "p" }, make("bdi", {}, one.p))));
  }
  cards.set(number, element);
  watcher.observe(element);
  return element;
}

function fill(element) {
  if (element.dataset.filled) return;
  element.dataset.filled = "1";
  watcher.unobserve(element);
  const number = Number(element.dataset.number), one = data.responses[number], column = columns[number];
  const tokens = element.querySelector(".tokens"), counts = data.legend.map(() => 0);
  const spans = column.t.map((word, place) => {
    const kind = column.r[place], text = words[word];
    counts[kind] += 1;
    const span = document.createElement("span");
    span.className = `tok k${kind} s-${data.legend[kind].style}`;
    span.id = `t${number}-${place}`;
    span.setAttribute("role", "option");
    if (!text.trim()) span.setAttribute("aria-label", text ? "white space" : "a part of the next character");
    // Lines break after a token, not in it: its outline would go on at the beginning of the next line.
    const [, shown, breaks] = text.match(/^([^]*?)(\n*)$/);
    span.textContent = text === "" ? "▫" : shown.replaceAll("\n", "↵\n") + "↵".repeat(breaks.length);
    return [span, breaks];
  });
  tokens.replaceChildren(...spans.flat());
  tokens.tabIndex = 0;
  tokens.setAttribute("role", "listbox");
  tokens.setAttribute("aria-label", `Tokens of the response to: ${one.question.slice(0, 200)}`);
  const bar = element.querySelector(".bar");
  bar.setAttribute("role", "img");
  bar.setAttribute("aria-label", data.legend.map((key, kind) => `${key.code} ${counts[kind]} of ${spans.length}`).join(", "));
  bar.append(...counts.map((count, kind) => {
    const part = make("i", { className: `s-${data.legend[kind].style}` });
    part.style.flexGrow = count;
    if (!count) part.style.display = "none";
    return part;
  }));
  const side = element.querySelector(".with.seen > div");
  if (side) side.append(...one.pictures.map(picture));
}

function picture(one, place) {
  const labels = one.marks.map((mark) => mark.label);
  const alt = `Picture ${place + 1}, ${one.origin}` + (labels.length ? `, with labelled boxes: ${labels.join(", ")}` : "");
  const frame = make("div", { className: "picture" },
    make("img", { src: data.pictures[one.index], width: one.width, height: one.height, alt }));
  frame.style.maxWidth = `${one.widest}px`;
  for (const mark of one.marks) {
    const box = make("div", { className: `box ${mark.corner}`, "aria-hidden": "true" }, make("span", {}, mark.label));
    for (const name of ["left", "top", "width", "height"]) box.style[name] = `${mark[name]}%`;
    frame.append(box);
  }
  return frame;
}

// ---- the token pointed at

let now = null;
function show(span) {
  if (!span || span === now) return;
  if (now) { now.classList.remove("now"); now.removeAttribute("aria-selected"); }
  now = span;
  span.classList.add("now");
  span.setAttribute("aria-selected", "true");
  span.parentElement.setAttribute("aria-activedescendant", span.id);
  const [number, place] = span.id.slice(1).split("-").map(Number);
  detail.replaceChildren(...describe(number, place));
}

function describe(number, place) {
  const one = data.responses[number], column = columns[number];
  const key = data.legend[column.r[place]], component = one.components[key.code];
  const how = make("p", { className: "how" }, make("b", {}, key.code), ` ${key.label}`);
  if (component) {
    const target = component.target ? data.roles[component.target] ?? component.target.replaceAll("_", " ") : "no target";
    how.append(make("br"), `target: ${target}; ${component.divergence}; weight ${fixed(column.w[place], 2)}`);
  }
  const parts = [make("h2", {}, make("bdi", {}, visible(words[column.t[place]]))), how];
  const rows = Object.keys(data.roles).filter((role) => role in column.l).map((role) => [
    data.roles[role], percent(column.l[role][place]), nats(column.l[role][place]), entropy(column.e[role]?.[place]), role]);
  const distance = gap(number, place);
  parts.push(table(distance === null ? "" : `gap ${nats(distance)} nats`, ["", "q", "log q", "entropy"], rows));
  for (const [name, values] of Object.entries(column.s)) parts.push(make("p", { className: "how" }, `${name} ${fixed(values[place])}`));
  const found = candidates(column, place);
  if (column.of.length) {
    const body = found.map(([word, ...values], rank) => {
      const cells = values.map((value, role) => {
        const cell = make("td", { className: "num p" + (column.of[role].startsWith("teacher") ? " t" : "") }, percent(value));
        cell.style.setProperty("--w", `${Math.min(100, 100 * Math.exp((value ?? -1e6) / 1000))}%`);
        return cell;
      });
      return make("tr", { className: rank ? "" : "drawn" },
        make("th", { scope: "row", className: "word" }, make("bdi", {}, visible(words[word]))), ...cells);
    });
    const heads = ["token", ...column.of.map((role) => data.roles[role] ?? role)];
    parts.push(framed("likeliest tokens; the sampled one first", heads, body));
  }
  parts.push(make("p", { className: "how" }, `token ${place + 1} of ${column.t.length}`));
  return parts;
}

function table(caption, heads, rows) {
  const body = rows.map(([name, ...cells]) => make("tr", {}, make("th", { scope: "row" }, name),
    ...cells.slice(0, -1).map((cell) => make("td", { className: "num" }, cell))));
  return framed(caption, heads, body);
}
function framed(caption, heads, body) {
  const head = heads.map((name, place) => place || name
    ? make("th", { scope: "col", className: place ? "num" : "" }, name) : make("td", {}));
  return make("table", {}, make("caption", {}, caption), make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body));
}

list.addEventListener("pointerover", (event) => show(event.target.closest?.(".tokens > .tok")));
list.addEventListener("click", (event) => event.target.closest?.(".tokens > .tok")?.parentElement.focus({ preventScroll: true }));
list.addEventListener("focusin", (event) => {
  const tokens = event.target.closest?.(".tokens");
  if (tokens && now?.parentElement !== tokens) show(tokens.firstElementChild);
});
list.addEventListener("keydown", (event) => {
  const tokens = event.target.closest?.(".tokens");
  if (!tokens || !now || now.parentElement !== tokens || event.ctrlKey || event.metaKey || event.altKey) return;
  const moves = {
    ArrowRight: () => now.nextElementSibling, ArrowLeft: () => now.previousElementSibling,
    Home: () => tokens.firstElementChild, End: () => tokens.lastElementChild,
    ArrowDown: () => below(1), ArrowUp: () => below(-1),
  };
  if (!(event.key in moves)) return;
  event.preventDefault();
  const next = moves[event.key]();
  show(next);
  now.scrollIntoView({ block: "nearest" });
});
function below(direction) {  // the token of the next line that is nearest
  const top = now.offsetTop, left = now.offsetLeft;
  let best = null, line = null, span = now;
  while ((span = direction > 0 ? span.nextElementSibling : span.previousElementSibling)) {
    if (span.offsetTop === top) continue;
    line ??= span.offsetTop;
    if (span.offsetTop !== line) break;
    if (!best || Math.abs(span.offsetLeft - left) < Math.abs(best.offsetLeft - left)) best = span;
  }
  return best;
}

// ---- which responses

const keys = [...document.querySelectorAll(".keys input")];
const searched = data.responses.map((one) => [one.question, one.answer ?? "", one.text, one.sample].join("\n").toLowerCase());
const ORDERS = {
  saved: () => 0, length: (a, b) => columns[b].t.length - columns[a].t.length,
  mean: (a, b) => (data.responses[b].mean ?? 0) - (data.responses[a].mean ?? 0),
  most: (a, b) => (data.responses[b].most ?? 0) - (data.responses[a].most ?? 0),
};
let kinds = [];

function refresh() {
  const step = data.steps[Number(byId("step").value)], all = byId("all").checked;
  const words_ = byId("search").value.toLowerCase().trim();
  const off = keys.map((key) => !key.checked);
  const shown = data.responses.map((_, number) => number).filter((number) =>
    (all || data.responses[number].step === step) && searched[number].includes(words_)
    && (!off.includes(true) || kinds[number].some((count, kind) => count && !off[kind])));
  shown.sort(ORDERS[byId("sort").value]);
  list.className = off.map((is, kind) => is ? `off${kind}` : "").join(" ");
  list.replaceChildren(...(shown.length ? shown.map(card) : [make("p", { className: "note" }, "No response has that.")]));
  byId("step-name").textContent = step;
  byId("step").setAttribute("aria-valuetext", `after step ${step}`);
  byId("step").disabled = all || data.steps.length === 1;
  byId("count").textContent = `${shown.length} of ${data.responses.length} responses`;
  keys.forEach((key, kind) => {
    const total = shown.reduce((sum, number) => sum + kinds[number][kind], 0);
    key.closest("label").querySelector("output").textContent = total.toLocaleString("en");
  });
}

let waiting = 0;
byId("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(refresh, 120); });
for (const control of [...keys, byId("all"), byId("sort")]) control.addEventListener("change", refresh);
byId("step").addEventListener("input", refresh);
document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
addEventListener("beforeprint", () => { for (const element of list.querySelectorAll(".response")) fill(element); });

unpack().then((unpacked) => {
  ({ words, columns } = unpacked);
  kinds = columns.map((column) => {
    const counts = data.legend.map(() => 0);
    for (const kind of column.r) counts[kind] += 1;
    return counts;
  });
  refresh();
});
