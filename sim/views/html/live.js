"use strict";
// Draws the snapshots of a run as they come. Text is only ever set as text.
const WINDOW_S = 120, LEFT = 62, TOP = 12, BOTTOM = 225;
const history = [];
const by = (id) => document.getElementById(id);
const add = (parent, name, text, attributes = {}, space = null) => {
  const made = parent.appendChild(space ? document.createElementNS(space, name) : document.createElement(name));
  if (text !== null) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};
const said = (value, steps) => {
  if (value === null || value === undefined) return "-";
  const [size, unit] = steps.find(([least]) => Math.abs(value) >= least) || steps[steps.length - 1];
  return `${Number((value / size).toPrecision(3))} ${unit}`.trim();
};
const round = (value) => {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 5, 10].find((each) => each * power >= value * 0.999);
};
const count = (value) => said(value, [[1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""]]);
const time = (value) => said(value, [[1e9, "s"], [1e6, "ms"], [1e3, "us"], [1, "ns"]]);
const sum = (snapshot, key) => Object.values(snapshot.groups).reduce((all, group) => all + (group[key] || 0), 0);

const CHARTS = {
  rates: [["doorbells delivered", 1, (it) => sum(it, "delivered_per_s")], ["interrupts", 11, (it) => sum(it, "interrupts_per_s")]],
  latency: [["p50", 5, (it) => it.latency_ns.p50], ["p99", 7, (it) => it.latency_ns.p99]],
  pending: [["pending", 1, (it) => it.pending]],
};

function draw(name, points) {
  const figure = by(name), svg = figure.querySelector('svg[role="img"]'), word = name === "latency" ? time : count;
  const make = (parent, tag, text, attributes) => add(parent, tag, text, attributes, "http://www.w3.org/2000/svg");
  svg.replaceChildren();
  // One unit is one pixel: text has its size on any screen.
  const width = Math.max(260, svg.clientWidth), right = width - 8;
  svg.setAttribute("viewBox", `0 0 ${width} 260`);
  const lines = CHARTS[name]
    .map(([label, style, value]) => [label, style, points.map((it) => [it.ran_s, value(it)]).filter(([, y]) => Number.isFinite(y))])
    .filter(([, , line]) => line.length);
  const legend = figure.querySelector(".legend");
  legend.replaceChildren();
  for (const [label, style, line] of lines) {
    const key = add(legend, "li", null);
    const mark = make(key, "svg", null, { viewBox: "0 0 26 10", "aria-hidden": "true" });
    make(mark, "path", null, { d: "M1 5H25", class: `line s${style}` });
    add(key, "span", `${label} ${word(line[line.length - 1][1])}`);
  }
  const last = points.length ? points[points.length - 1].ran_s : 1;
  const from = Math.max(0, last - WINDOW_S), to = Math.max(from + 1, last);
  const values = lines.flatMap(([, , line]) => line.map(([, y]) => y));
  const top = Math.max(1, ...values) * 1.1, low = Math.max(1, Math.min(...values.filter((y) => y > 0), top)) / 1.2;
  const logarithmic = name === "latency";
  const x = (value) => LEFT + ((value - from) / (to - from)) * (right - LEFT);
  const y = (value) => BOTTOM - (logarithmic ? Math.log(Math.max(low, value) / low) / Math.log(top / low) : value / top) * (BOTTOM - TOP);
  const ticks = logarithmic
    ? [...Array(13).keys()].map((power) => 10 ** power).filter((each) => each >= low && each <= top)
    : [...Array(6).keys()].map((place) => place * round(top / 5)).filter((each) => each <= top);
  for (const value of ticks) {
    make(svg, "line", null, { x1: LEFT, x2: right, y1: y(value), y2: y(value), class: "grid" });
    make(svg, "text", word(value), { x: LEFT - 6, y: y(value) + 4, class: "tick", "text-anchor": "end" });
  }
  const step = round((to - from) / (width < 500 ? 4 : 8));
  for (let at = Math.ceil(from / step) * step; at <= to; at += step) {
    make(svg, "text", `${Number(at.toPrecision(6))} s`, { x: Math.min(x(at), right - 12), y: BOTTOM + 18, class: "tick", "text-anchor": "middle" });
  }
  make(svg, "line", null, { x1: LEFT, x2: right, y1: BOTTOM, y2: BOTTOM, class: "axis" });
  for (const [, style, line] of lines) {
    const shown = line.filter(([at]) => at >= from);
    const points = shown.map(([at, value]) => `${x(at).toFixed(1)} ${y(value).toFixed(1)}`);
    if (points.length) make(svg, "path", null, { d: "M" + points.join("L") + "h.1", class: `${points.length > 1 ? "line" : "lone"} s${style}` });
  }
  svg.setAttribute("aria-label", `${figure.querySelector("h2").textContent}: ` + lines.map(([label, , line]) => `${label} ${word(line[line.length - 1][1])}`).join(", "));
}

function tell(now) {
  by("title").textContent = now.title || "a run";
  document.title = `${now.title || "a run"} – ivsim top`;
  const left = now.left_s === null ? "" : `, ${now.left_s.toFixed(0)} s left`;
  const late = now.heartbeats_late ? `, ${now.heartbeats_late} late heartbeats` : "";
  const machines = now.phase === "done" ? `${now.machines} machines` : `${now.up} of ${now.machines} machines up`;
  by("meta").textContent = `${machines}${left}${late}${now.path ? `, ${now.path}` : ""}`;
  const tiles = by("tiles");
  tiles.replaceChildren();
  const each = sum(now, "interrupts_per_s") ? (sum(now, "delivered_per_s") / sum(now, "interrupts_per_s")).toFixed(2) : "-";
  for (const [name, value] of [
    ["doorbells a second", count(sum(now, "rung_per_s"))], ["interrupts a second", count(sum(now, "interrupts_per_s"))],
    ["doorbells per interrupt", each], ["delivery, median", time(now.latency_ns.p50)],
    ["pending", count(now.pending)], ["refused", count(sum(now, "refused"))],
  ]) {
    const tile = add(tiles, "div", null);
    add(tile, "dt", name);
    add(tile, "dd", value);
  }
  const table = by("groups");
  table.replaceChildren();
  add(table, "caption", "Groups");
  const head = add(add(table, "thead", null), "tr", null);
  for (const name of ["group", "up", "rung/s", "delivered/s", "interrupts/s", "rung", "delivered", "refused"]) add(head, "th", name, { scope: "col", class: name === "group" ? "words" : "" });
  const body = add(table, "tbody", null);
  for (const [name, group] of Object.entries(now.groups)) {
    const row = add(body, "tr", null);
    add(row, "th", name, { scope: "row", class: "words" });
    add(row, "td", `${group.up}/${group.machines}`);
    for (const key of ["rung_per_s", "delivered_per_s", "interrupts_per_s"]) add(row, "td", count(group[key]));
    for (const key of ["rung", "delivered", "refused"]) add(row, "td", group[key].toLocaleString("en"));
  }
  const events = by("events");
  events.replaceChildren();
  events.parentElement.hidden = !now.happened.length;
  for (const event of now.happened) {
    const at = (event.time_ns - (now.start_ns === null ? now.time_ns : now.start_ns)) / 1e9;
    add(events, "li", `${at.toFixed(3)} s  ${event.text || event.kind}`);
  }
}

function status(word, good) {
  by("phase").textContent = word;
  by("phase").className = `status ${good ? "finished" : "failed"}`;
}

let drawing = false;
function later() {
  if (drawing) return;
  drawing = true;
  setTimeout(() => {
    drawing = false;
    const now = history[history.length - 1];
    tell(now);
    const points = history.filter((it) => it.ran_s !== null);
    for (const name of Object.keys(CHARTS)) draw(name, points);
  }, 50);
}

// A unit of a picture is a pixel of the window that it was drawn for.
addEventListener("resize", () => {
  if (history.length) later();
});

const source = new EventSource("events");
source.onmessage = (event) => {
  const now = JSON.parse(event.data);
  history.push(now);
  while (history.length > 4000) history.shift();
  status(now.phase, true);
  later();
};
source.onerror = () => status("no connection", false);
source.addEventListener("end", (event) => {
  source.close();
  status(event.data || "over", !event.data);
});
