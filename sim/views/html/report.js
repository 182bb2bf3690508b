"use strict";
// A line and the values under the pointer. The page is whole without it.
for (const chart of document.querySelectorAll("svg[data-hover]")) {
  const facts = JSON.parse(chart.dataset.hover);
  const names = "http://www.w3.org/2000/svg";
  const cursor = chart.appendChild(document.createElementNS(names, "line"));
  cursor.setAttribute("class", "cursor");
  cursor.setAttribute("y1", facts.top);
  cursor.setAttribute("y2", facts.bottom);
  cursor.style.display = "none";
  const dots = facts.lines.map((line) => {
    const dot = chart.appendChild(document.createElementNS(names, "circle"));
    dot.setAttribute("class", "dot s" + line.style);
    dot.setAttribute("r", 3.5);
    dot.style.display = "none";
    return dot;
  });
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  chart.parentNode.appendChild(tip);
  const leave = () => {
    tip.hidden = true;
    cursor.style.display = "none";
    dots.forEach((dot) => (dot.style.display = "none"));
  };
  let shown = -1;
  chart.addEventListener("pointerleave", leave);
  chart.addEventListener("blur", leave);
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const scale = chart.viewBox.baseVal.width / box.width;
    show(Math.round(((event.clientX - box.left) * scale - facts.from) / facts.every));
  });
  // By keyboard: Tab reaches a chart, the arrows move the line, Escape takes it away.
  chart.tabIndex = 0;
  chart.addEventListener("keydown", (event) => {
    const last = facts.x.length - 1;
    const steps = { ArrowLeft: shown - 1, ArrowRight: shown + 1, PageUp: shown - 10, PageDown: shown + 10, Home: 0, End: last };
    if (event.key === "Escape") leave();
    if (!(event.key in steps)) return;
    event.preventDefault();
    show(Math.min(last, Math.max(0, steps[event.key])));
  });
  const show = (place) => {
    if (place < 0 || place >= facts.x.length) return leave();
    shown = place;
    const box = chart.getBoundingClientRect();
    const scale = chart.viewBox.baseVal.width / box.width;
    const x = facts.from + place * facts.every;
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.style.display = "";
    tip.textContent = "";
    tip.appendChild(document.createElement("b")).textContent = facts.x[place];
    facts.lines.forEach((line, at) => {
      const there = line.y[place] >= 0;
      dots[at].style.display = there ? "" : "none";
      if (!there) return;
      dots[at].setAttribute("cx", x);
      dots[at].setAttribute("cy", line.y[place]);
      const row = tip.appendChild(document.createElement("div"));
      row.appendChild(document.createElement("span")).textContent = line.name;
      row.appendChild(document.createElement("span")).textContent = line.words[place];
    });
    tip.hidden = false;
    const figure = chart.parentNode.getBoundingClientRect();
    const left = box.left - figure.left + x / scale;
    const flip = left + 16 + tip.offsetWidth > figure.width;
    tip.style.left = (flip ? left - 14 - tip.offsetWidth : left + 14) + "px";
    tip.style.top = box.top - figure.top + facts.top / scale + 6 + "px";
  };
}
