"use strict";
// Small helpers and the charts: plain inline SVG, drawn once, read with the pointer.

const SVG = "http://www.w3.org/2000/svg";
const tip = document.getElementById("tip");

/** An HTML element; text goes in as text, never as markup. */
function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name === "class") node.className = value;
    else if (name.startsWith("--")) node.style.setProperty(name, value);
    else if (value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((c) => c !== null && c !== undefined));
  return node;
}

function svg(tag, props = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(props)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** A number for people: few digits, thin, no noise. */
function show(x, digits = 3) {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  if (x < 0) return "−" + show(-x, digits);
  if (Number.isInteger(x) && x < 1e7) return x.toLocaleString("en");
  if (x >= 1e7 || x < 1e-4) return x.toExponential(digits - 1).replace("e+", "e");
  return x >= 1000 ? Math.round(x).toLocaleString("en") : String(Number(x.toPrecision(digits)));
}

const percent = (x, digits = 3) => (x === null || x === undefined ? "–" : show(100 * x, digits) + "\u00a0%");

function large(x) {
  for (const [limit, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (x >= limit) return Number((x / limit).toPrecision(3)) + letter;
  return String(Number(x.toPrecision(3)));
}

function placeTip(event, text) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 8)) + "px";
  tip.style.top = Math.max(4, event.clientY - box.height - 12) + "px";
}
const hideTip = () => { tip.hidden = true; };

/** About n round numbers between low and high. */
function ticks(low, high, n, log) {
  if (log) {
    const out = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
      for (const m of Math.log10(high / low) < 1.6 ? [1, 2, 5] : [1]) out.push(m * 10 ** e);
    const inside = out.filter((t) => t >= low * 0.999 && t <= high * 1.001);
    const skip = Math.ceil(inside.length / 5);
    return inside.filter((_, i) => i % skip === 0);
  }
  const span = high - low || Math.abs(high) || 1;
  const raw = span / n, unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].find((m) => m * unit >= raw) * unit;
  const out = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-6; i++) out.push(Number((i * step).toPrecision(12)));
  return out;
}

/**
 * Curves over tokens.
 * series: [{x: [], y: [], run: 0 | 1, heldout: bool, label}]
 */
function curveChart(title, series, format = show) {
  const W = 280, H = 165, L = 40, R = 8, T = 10, B = 24;
  series = series.filter((s) => s.y.some((y) => y !== null));
  const ys = series.flatMap((s) => s.y.filter((y) => y !== null)), xs = series.flatMap((s) => s.x);
  let low = ys.reduce((a, b) => Math.min(a, b), Infinity), high = ys.reduce((a, b) => Math.max(a, b), -Infinity);
  const log = low > 0 && high / low > 20;
  if (!log) { const pad = (high - low || Math.abs(high) || 1) * 0.06; low = low >= 0 ? Math.max(0, low - pad) : low - pad; high += pad; }
  const last = xs.reduce((a, b) => Math.max(a, b), 1);
  const X = (x) => L + (x / last) * (W - L - R);
  const f = log ? Math.log10 : (y) => y;
  const Y = (y) => H - B - ((f(y) - f(low)) / (f(high) - f(low) || 1)) * (H - T - B);
  const node = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${title} during training` });
  for (const t of ticks(low, high, 4, log))
    node.append(svg("line", { class: "grid", x1: L, x2: W - R, y1: Y(t), y2: Y(t) }), svg("text", { x: L - 7, y: Y(t) + 4, "text-anchor": "end" }, format(t)));
  for (const t of ticks(0, last, 3, false)) node.append(svg("text", { x: X(t), y: H - 8, "text-anchor": "middle" }, large(t)));
  for (const s of series) {
    let d = "", pen = "M";
    s.x.forEach((x, i) => { if (s.y[i] === null) pen = "M"; else { d += `${pen}${X(x).toFixed(1)} ${Y(s.y[i]).toFixed(1)}`; pen = "L"; } });
    const group = svg("g", { class: `run-${s.run}` }, svg("path", { class: s.heldout ? "line heldout" : "line", d }));
    if (s.heldout) s.x.forEach((x, i) => { if (s.y[i] !== null) group.append(svg("circle", { class: "dot", cx: X(x), cy: Y(s.y[i]), r: 2.6 })); });
    node.append(group);
  }
  const cross = svg("line", { class: "cross", y1: T, y2: H - B, visibility: "hidden" });
  node.append(cross);
  node.addEventListener("pointermove", (event) => {
    const box = node.getBoundingClientRect();
    const at = Math.max(0, ((((event.clientX - box.left) / box.width) * W - L) / (W - L - R)) * last);
    const lines = [];
    let near = at;
    series.forEach((s) => {
      let best = 0;
      s.x.forEach((x, i) => { if (Math.abs(x - at) < Math.abs(s.x[best] - at)) best = i; });
      near = s.x[best];
      lines.push(`${s.label}: ${format(s.y[best])}`);
    });
    cross.setAttribute("x1", X(near)); cross.setAttribute("x2", X(near)); cross.setAttribute("visibility", "visible");
    placeTip(event, `${large(near)} tokens\n${lines.join("\n")}`);
  });
  node.addEventListener("pointerleave", () => { cross.setAttribute("visibility", "hidden"); hideTip(); });
  const final = series.some((s) => s.run) ? [] : series.map((s) => format(s.y[s.y.length - 1]));
  return el("div", { class: "chart" }, el("h3", {}, title, el("span", {}, [...new Set(final)].join(" · "))), node);
}

/** Histograms of log10 density, one per run, with the range in force emphasised. */
function densityChart(runs, range) {
  const W = Math.max(380, Math.min(1100, innerWidth - 70)), H = 230, L = 46, R = 12, T = 12, B = 44;
  const edges = runs[0].density.edges;
  const used = edges.map((_, i) => runs.some((r) => r.density.counts[i]));
  const first = Math.max(0, used.indexOf(true) - 2), lowest = edges[first], highest = 0;
  const most = Math.max(1, ...runs.flatMap((r) => r.density.counts));
  const X = (e) => L + ((e - lowest) / (highest - lowest || 1)) * (W - L - R), Y = (n) => H - B - (n / most) * (H - T - B);
  const node = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": "Histogram of the density of latents" });
  for (const t of ticks(0, most, 3, false)) node.append(svg("line", { class: "grid", x1: L, x2: W - R, y1: Y(t), y2: Y(t) }), svg("text", { x: L - 7, y: Y(t) + 4, "text-anchor": "end" }, show(t)));
  for (let e = Math.ceil(lowest); e <= 0; e++) node.append(svg("text", { x: X(e), y: H - B + 18, "text-anchor": "middle" }, percent(10 ** e)));
  node.append(svg("text", { x: (L + W - R) / 2, y: H - 6, "text-anchor": "middle" }, "share of tokens on which a latent is on (logarithmic)"));
  runs.forEach((run, which) => {
    const group = svg("g", { class: `run-${which}` });
    run.density.counts.forEach((n, i) => {
      if (!n || i < first) return;
      const inside = !range || (edges[i + 1] > range[0] && edges[i] < range[1]);
      const shape = svg("rect", { x: X(edges[i]) + 0.7, width: X(edges[i + 1]) - X(edges[i]) - 1.4, y: Y(n), height: H - B - Y(n), rx: 1.5, class: (runs.length > 1 ? "area" : "fill") + (inside ? "" : " out") });
      const text = `${runs.length > 1 ? run.name + "\n" : ""}${show(n)} latents on in ${percent(10 ** edges[i], 2)} to ${percent(10 ** edges[i + 1], 2)} of tokens`;
      shape.addEventListener("pointermove", (event) => placeTip(event, text));
      shape.addEventListener("pointerleave", hideTip);
      group.append(shape);
    });
    node.append(group);
  });
  return node;
}

/** Horizontal bars: [{label, value, run, note}]. */
function bars(items) {
  const W = 520, step = 30, L = 118, R = 62, H = items.length * step + 2;
  const most = Math.max(...items.map((i) => i.value));
  const node = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": items.map((i) => `${i.label} ${show(i.value)}`).join(", ") });
  items.forEach((item, i) => {
    const width = Math.max(2, (item.value / most) * (W - L - R)), y = i * step;
    node.append(
      svg("text", { class: "soft", x: L - 10, y: y + 19, "text-anchor": "end" }, item.label),
      svg("rect", { class: "fill " + (item.run === undefined ? "plain" : `run-${item.run}`), x: L, y: y + 6, width, height: 18, rx: 3 }),
      svg("text", { class: "ink", x: L + width + 8, y: y + 19 }, show(item.value, 4)));
  });
  return node;
}

/** A histogram without axes. */
function spark(counts) {
  const most = Math.max(1, ...counts), node = svg("svg", { viewBox: `0 0 ${counts.length * 10} 30`, preserveAspectRatio: "none", "aria-hidden": "true" });
  let d = "";
  counts.forEach((n, i) => { const h = n ? Math.max(1.5, (n / most) * 30) : 0; if (h) d += `M${i * 10 + 0.8} 30v${-h}h8.4v${h}z`; });
  node.append(svg("path", { class: "fill", d }));
  return node;
}
