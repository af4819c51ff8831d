"use strict";
// Values under the pointer, zoom and downloads of the figures. Without this script the page lacks only these.
// Each plot has data-numbers: its series with their places in the SVG, so that nothing here knows a scale.

const NAMESPACE = "http://www.w3.org/2000/svg";
const NEAR = 14; // SVG units within which the nearest point is meant, whichever direction it is in
const FAR = 60; // and within which one is meant at all
const LEAST = 8; // a smaller drag is a click
const DEEPEST = 1 / 200; // of the width or height, the smallest box

const colours = JSON.parse(document.body.dataset.colours);

function shown(value) {
  if (typeof value !== "number") return value === null ? "-" : value;
  const rounded = Number.isInteger(value) ? value : Number(value.toPrecision(6));
  const plain = rounded === 0 || (Math.abs(rounded) >= 1e-4 && Math.abs(rounded) < 1e15);
  return plain ? rounded.toLocaleString("en-US", { maximumFractionDigits: 12 }) : String(rounded);
}

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function sentence(series, k) {
  const [horizontal, vertical] = series.names;
  const to = series.end ? ` to ${shown(series.end[k])}` : "";
  const [low, high] = [series.lower?.[k], series.upper?.[k]];
  const interval = typeof low === "number" && typeof high === "number" ? ` [${shown(low)}, ${shown(high)}]` : "";
  const name = series.name ? `${series.name}; ` : "";
  return `${name}${horizontal} ${shown(series.x[k])}${to}: ${vertical} ${shown(series.y[k])}${interval}`;
}

function asCsv(numbers) {
  const quoted = (value) => (/[",\n]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
  const lines = [["series", "x_name", "x", "x_end", "y_name", "y", "lower", "upper"]];
  for (const series of numbers.series) {
    series.x.forEach((x, k) => {
      const row = [series.name, series.names[0], x, series.end?.[k], series.names[1], series.y[k]];
      lines.push([...row, series.lower?.[k], series.upper?.[k]]);
    });
  }
  return lines.map((line) => line.map((value) => quoted(value ?? "")).join(",")).join("\r\n") + "\r\n";
}

// The SVG on its own: the page's variables become the colours of print, and its font is named.
function asSvgFile(svg) {
  const copy = svg.cloneNode(true);
  for (const extra of copy.querySelectorAll(".cursor, .box")) extra.remove();
  const [, , width, height] = svg.getAttribute("viewBox").split(" ");
  copy.setAttribute("width", width);
  copy.setAttribute("height", height);
  copy.setAttribute("color", colours.currentColor);
  copy.removeAttribute("style");
  let text = new XMLSerializer().serializeToString(copy);
  for (const [variable, colour] of Object.entries(colours)) text = text.replaceAll(variable, colour);
  return `<?xml version="1.0" encoding="utf-8"?>\n${text}\n`;
}

function save(name, type, text) {
  const link = element("a", "", { download: name });
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// What moves when axes are zoomed: each entry writes itself under maps of the two coordinates.
function moving(svg, prefix, index) {
  const entries = [];
  const axes = svg.querySelector(`#${CSS.escape(`${prefix}-axes_${index + 1}`)}`);
  const line = (path, down) => {
    const d = path.getAttribute("d");
    const moved = (u, v) => d.replace(/(-?[\d.]+) (-?[\d.]+)/g, (_, x, y) => `${u(+x)} ${v(+y + down) - down}`);
    entries.push((u, v) => path.setAttribute("d", moved(u, v)));
  };
  const place = (node, side) => {
    const transform = node.getAttribute("transform") ?? "";
    const turned = transform.match(/(-?[\d.]+) (-?[\d.]+)\)$/) ?? [];
    const [x, y] = node.hasAttribute("x") ? [node.getAttribute("x"), node.getAttribute("y")] : turned.slice(1);
    entries.push((u, v, visible) => {
      const [left, top] = [side === "y" ? +x : u(+x), side === "x" ? +y : v(+y)];
      if (turned.length) node.setAttribute("transform", transform.replace(turned[0], `${left} ${top})`));
      if (node.hasAttribute("x")) for (const [name, value] of [["x", left], ["y", top]]) node.setAttribute(name, value);
      node.style.display = visible(left, top, side) ? "" : "none";
    });
  };
  for (const node of axes ? axes.querySelectorAll("path[clip-path], path[id], use, text") : []) {
    const tick = node.closest('[id*="tick_"]')?.id;
    if (node.closest('[id*="PolyCollection_"]')) {
      // A band is one path among the definitions, below the place where it is used.
      if (node.localName === "path") line(node, +axes.querySelector(`use[*|href="#${node.id}"]`).getAttribute("y"));
    } else if (node.localName !== "path") {
      if (tick || !node.closest('[id*="matplotlib.axis"]')) place(node, tick && (tick.includes("-xtick_") ? "x" : "y"));
    } else if (!node.closest("defs")) line(node, 0);
  }
  return entries;
}

class Plot {
  constructor(holder) {
    this.holder = holder;
    this.svg = holder.querySelector("svg");
    this.numbers = JSON.parse(holder.dataset.numbers);
    this.points = this.numbers.series.flatMap((series) => series.at.map((at, k) => ({ series, k, at })));
    this.views = this.numbers.boxes.map((box) => [...box]);
    this.moving = this.numbers.boxes.map((_, k) => moving(this.svg, this.numbers.name, k));
    this.cursor = this.drawn("circle", "cursor", { r: 5 });
    this.box = this.drawn("rect", "box", {});
    this.tools();
    if (!this.points.length) return;
    this.tip = holder.appendChild(element("output", "", { class: "tip" }));
    this.hide();
    holder.tabIndex = 0;
    holder.setAttribute("role", "group");
    holder.setAttribute("aria-label", `${this.svg.getAttribute("aria-label")}: arrow keys show its values`);
    this.listen();
  }

  drawn(name, kind, attributes) {
    const made = this.svg.appendChild(document.createElementNS(NAMESPACE, name));
    for (const [key, value] of Object.entries({ class: kind, visibility: "hidden", ...attributes })) {
      made.setAttribute(key, value);
    }
    return made;
  }

  tools() {
    const { name, series } = this.numbers;
    const bar = element("div", "", { class: "tools" });
    const button = (text, title, act) => {
      const made = bar.appendChild(element("button", text, { type: "button", title }));
      made.addEventListener("click", act);
      return made;
    };
    this.reset = button("reset zoom", "Show all of it (double click)", () => this.unzoom());
    this.reset.hidden = true;
    if (series.length) {
      const some = series.some((each) => each.of > each.y.length);
      const which = some ? "one point for each that can be told apart" : "all of them";
      button("CSV", `Save the numbers (${which})`, () => save(`${name}.csv`, "text/csv", asCsv(this.numbers)));
    }
    button("SVG", "Save the figure", () => save(`${name}.svg`, "image/svg+xml", asSvgFile(this.svg)));
    this.holder.after(bar);
  }

  listen() {
    const { holder } = this;
    holder.addEventListener("pointermove", (event) => this.move(event));
    holder.addEventListener("pointerleave", () => this.start || this.hide());
    holder.addEventListener("pointerdown", (event) => {
      if (event.button === 0 && event.pointerType === "mouse") this.start = this.place(event);
    });
    window.addEventListener("pointerup", (event) => this.start && this.finish(event));
    holder.addEventListener("click", (event) => this.show(this.nearest(this.place(event))));
    holder.addEventListener("dblclick", () => this.unzoom());
    holder.addEventListener("focus", () => holder.matches(":focus-visible") && this.show(this.visible()[0]));
    holder.addEventListener("blur", () => this.hide());
    holder.addEventListener("keydown", (event) => this.key(event));
  }

  // Where a point stands now, and whether that is inside its axes.
  at(point) {
    const box = this.numbers.boxes[point.series.box];
    const [u, v] = this.maps(point.series.box);
    const [x, y] = [u(point.at[0]), v(point.at[1])];
    return { x, y, inside: x >= box[0] - 1 && x <= box[2] + 1 && y >= box[1] - 1 && y <= box[3] + 1 };
  }

  maps(k) {
    const [box, view] = [this.numbers.boxes[k], this.views[k]];
    const line = (a, b) => (x) => +(box[a] + ((x - view[a]) * (box[b] - box[a])) / (view[b] - view[a])).toFixed(3);
    return [line(0, 2), line(1, 3)];
  }

  place(event) {
    const matrix = this.svg.getScreenCTM().inverse();
    const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix);
    return [x, y];
  }

  visible() {
    return this.points.filter((point) => this.at(point).inside);
  }

  nearest([x, y]) {
    let [best, least] = [undefined, FAR];
    for (const point of this.points) {
      const at = this.at(point);
      const straight = Math.hypot(at.x - x, at.y - y);
      // Beside a line or within a bar it is the horizontal distance that counts.
      const distance = straight <= NEAR ? straight / 10 : Math.hypot(2 * (at.x - x), (at.y - y) / 6);
      if (at.inside && distance < least) [best, least] = [point, distance];
    }
    return best;
  }

  show(point) {
    if (!point) return this.hide();
    this.current = point;
    const { x, y } = this.at(point);
    this.cursor.setAttribute("cx", x);
    this.cursor.setAttribute("cy", y);
    this.cursor.setAttribute("visibility", "visible");
    this.tip.textContent = sentence(point.series, point.k);
    this.tip.hidden = false;
    const frame = this.holder.getBoundingClientRect();
    const on = new DOMPoint(x, y).matrixTransform(this.svg.getScreenCTM());
    const scrolled = this.holder.scrollLeft;
    const most = scrolled + this.holder.clientWidth - this.tip.offsetWidth;
    const left = Math.max(scrolled, Math.min(on.x - frame.left + scrolled - this.tip.offsetWidth / 2, most));
    const above = on.y - frame.top - this.tip.offsetHeight - 12;
    this.tip.style.left = `${left}px`;
    this.tip.style.top = `${above < 0 ? on.y - frame.top + 14 : above}px`;
  }

  hide() {
    this.tip.hidden = true;
    for (const each of [this.cursor, this.box]) each.setAttribute("visibility", "hidden");
  }

  corners(event) {
    const [x, y] = this.place(event);
    return [Math.min(x, this.start[0]), Math.min(y, this.start[1]), Math.max(x, this.start[0]), Math.max(y, this.start[1])];
  }

  move(event) {
    if (!this.start) return event.pointerType === "mouse" && this.show(this.nearest(this.place(event)));
    this.hide();
    const [left, top, right, bottom] = this.corners(event);
    const shape = { x: left, y: top, width: right - left, height: bottom - top, visibility: "visible" };
    for (const [key, value] of Object.entries(shape)) this.box.setAttribute(key, value);
  }

  finish(event) {
    const corners = this.corners(event);
    const [x, y] = this.start;
    this.start = undefined;
    this.box.setAttribute("visibility", "hidden");
    if (corners[2] - corners[0] < LEAST && corners[3] - corners[1] < LEAST) return;
    this.numbers.boxes.forEach((box, k) => {
      const inside = x >= box[0] && x <= box[2] && y >= box[1] && y <= box[3];
      if (inside) this.zoom(k, corners);
    });
  }

  // Shows of the axes what is inside the corners, given as the figure stands; a thin drag zooms one direction only.
  zoom(k, corners) {
    const [box, view] = [this.numbers.boxes[k], [...this.views[k]]];
    for (const side of [0, 1]) {
      const [low, high] = [Math.max(corners[side], box[side]), Math.min(corners[side + 2], box[side + 2])];
      if (high - low < LEAST) continue;
      const back = (x) => view[side] + ((x - box[side]) * (view[side + 2] - view[side])) / (box[side + 2] - box[side]);
      const [from, to] = [back(low), back(high)];
      if (to - from > DEEPEST * (box[side + 2] - box[side])) [this.views[k][side], this.views[k][side + 2]] = [from, to];
    }
    this.redraw(k);
  }

  unzoom() {
    this.numbers.boxes.forEach((box, k) => {
      this.views[k] = [...box];
      this.redraw(k);
    });
    this.hide();
  }

  redraw(k) {
    const box = this.numbers.boxes[k];
    const [u, v] = this.maps(k);
    const across = (x) => x >= box[0] - 0.5 && x <= box[2] + 0.5;
    const down = (y) => y >= box[1] - 0.5 && y <= box[3] + 0.5;
    const visible = (x, y, side) => (side === "y" || across(x)) && (side === "x" || down(y));
    for (const write of this.moving[k]) write(u, v, visible);
    this.reset.hidden = this.views.every((view, each) => view.every((end, i) => end === this.numbers.boxes[each][i]));
    this.hide();
  }

  key(event) {
    const turn = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key];
    if (event.key === "Escape") return this.unzoom();
    const points = this.visible();
    const lines = this.numbers.series.map((one) => points.filter(({ series }) => series === one)).filter((line) => line.length);
    const here = lines.findIndex((line) => line.includes(this.current));
    if (!turn || !lines.length || (turn[1] && lines.length < 2)) return;
    event.preventDefault();
    if (here < 0) return this.show(lines[0][0]);
    if (turn[0]) return this.show(lines[here][lines[here].indexOf(this.current) + turn[0]] ?? this.current);
    const away = (point) => Math.abs(this.at(point).x - this.at(this.current).x);
    const other = lines[(here + turn[1] + lines.length) % lines.length];
    this.show(other.reduce((best, point) => (away(point) < away(best) ? point : best)));
  }
}

for (const holder of document.querySelectorAll("[data-numbers]")) new Plot(holder);
