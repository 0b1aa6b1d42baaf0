// The page: overview, curves, histogram and the cards of latents, from the JSON embedded above.

const data = JSON.parse(document.getElementById("data").textContent);
const runs = data.runs, $ = (id) => document.getElementById(id);
const PAGE = 240;

// ------------------------------------------------------------------------------------------------ overview
/** key -> [label, format, what it is]; the order of the table. */
const NUMBERS = {
  loss_recovered_mean: ["loss recovered (mean ablation)", percent, "(CE mean − CE dictionary) / (CE mean − CE clean)"],
  loss_recovered_zero: ["loss recovered (zero ablation)", percent, "the same against zeros; flattering where norms are large"],
  clean_ce: ["cross-entropy, clean", show, "nats per token, host untouched"],
  sae_ce: ["cross-entropy, dictionary", show, "site replaced by its reconstruction"],
  mean_ce: ["cross-entropy, mean ablation", show, "site replaced by its training mean"],
  zero_ce: ["cross-entropy, zero ablation", show, "site replaced by zeros"],
  kl: ["KL divergence", show, "of the host's predictions, clean against dictionary, nats per token"],
  fvu: ["FVU", show, "Σ|y − ŷ|² / Σ|y − mean|²: share of the variance left unexplained"],
  explained_variance: ["explained variance", show, "1 − FVU"],
  explained_variance_centred: ["explained variance, centred", show, "blind to a constant bias"],
  mse: ["squared error", show, "summed over the width, mean over rows"],
  normalised_mse: ["normalised error", show, "mean over rows of |y − ŷ|² / |y|²"],
  cosine: ["cosine", show, "mean over rows, y against ŷ"],
  l2_ratio: ["norm ratio", show, "mean over rows of |ŷ| / |y|"],
  relative_reconstruction_bias: ["relative reconstruction bias", show, "Σ|ŷ|² / Σ y·ŷ; 1 is no shrinkage"],
  l0: ["L0", show, "latents on per row"],
  dead_share: ["dead latents", percent, "on in none of the rows"],
  dense_share: ["dense latents", percent, "on in more than a tenth of the rows"],
  rows: ["rows", show, "behind reconstruction and sparsity"],
  ce_tokens: ["tokens", show, "behind the cross-entropies"],
};

function overview() {
  $("title").textContent = data.title;
  $("lead").textContent = data.lead;
  const m = runs.map((r) => r.metrics), two = runs.length > 1;
  const tile = (label, key, format, note) => {
    if (m.every((x) => x[key] === undefined || x[key] === null)) return;
    const values = m.map((x, i) => el("dd", { class: two ? `run-${i}` : "" }, format(x[key])));
    $("tiles").append(el("dl", { class: "tile" }, el("dt", {}, label), ...values, el("small", {}, note)));
  };
  const se = m[0].standard_error && m[0].standard_error.loss_recovered_mean;
  tile("Loss recovered", "loss_recovered_mean", percent, "against mean ablation" + (se ? ` (±\u00a0${show(100 * se, 2)}\u00a0s.e.)` : ""));
  tile("Unexplained variance", "fvu", show, "FVU, mean-centred; 0 is perfect");
  tile("Latents per token", "l0", show, `of ${[...new Set(runs.map((r) => show(r.shape.d_sae)))].join(" and ")}`);
  tile("Dead latents", "dead_share", percent, m[0].rows ? `on in none of ${show(m[0].rows)} rows` : "");
  tile("KL to the clean host", "kl", show, "nats per token");
  $("tiles").classList.toggle("two", two);
  losses(m, two);
  facts();
  numbers(m, two);
  $("overview").hidden = false;
}

function losses(m, two) {
  if (m[0].sae_ce === undefined) return;
  const ours = m.map((x, i) => ({ label: two ? `dictionary ${"AB"[i]}` : "dictionary", value: x.sae_ce, run: i })).filter((x) => x.value !== undefined);
  const items = [{ label: "clean", value: m[0].clean_ce }, ...ours, { label: "mean ablation", value: m[0].mean_ce }, { label: "zero ablation", value: m[0].zero_ce }];
  const about = `${show(m[0].ce_tokens)} tokens of ${show(m[0].ce_documents)} held-out documents`;
  $("losses").append(el("h3", {}, `Cross-entropy of the host, nats per token (${about})`), bars(items));
  m.forEach((x, i) => {
    if (typeof x.loss_recovered_mean !== "number") return;
    const who = two ? `Dictionary ${"AB"[i]}` : "The dictionary";
    $("losses").append(el("p", {}, `${who} recovers ${percent(x.loss_recovered_mean)} of what mean ablation destroys, and ${percent(x.loss_recovered_zero)} of what zero ablation destroys.`));
  });
  $("losses").hidden = false;
}

function facts() {
  const two = runs.length > 1, list = el("dl", { class: two ? "two" : "" });
  if (two) list.append(el("dt"), ...runs.map((r, i) => el("dd", { class: `run-${i}` }, `${"AB"[i]} · ${r.name}`)));
  const all = runs.map((r) => new Map(r.facts));
  for (const name of new Set(runs.flatMap((r) => r.facts.map(([n]) => n))))
    list.append(el("dt", {}, name), ...all.map((f) => el("dd", {}, f.get(name) || "–")));
  $("facts").append(el("h3", {}, two ? "What they are" : "What this is"), list);
}

function numbers(m, two) {
  const head = el("tr", {}, el("th", {}, ""), ...runs.map((r, i) => el("th", { class: two ? `run-${i}` : "" }, two ? `${"AB"[i]} · ${r.name}` : "value")));
  if (two) head.append(el("th", {}, "B − A"));
  head.append(el("th", {}, ""));
  const body = el("tbody");
  for (const [key, [label, format, meaning]] of Object.entries(NUMBERS)) {
    if (m.every((x) => x[key] === undefined)) continue;
    const row = el("tr", {}, el("td", {}, label));
    m.forEach((x) => {
      const error = x.standard_error && x.standard_error[key];
      row.append(el("td", {}, format(x[key], 4), error ? el("small", {}, ` ± ${format(error, 2)}`) : null));
    });
    if (two) row.append(el("td", {}, difference(m[0][key], m[1][key], format)));
    row.append(el("td", {}, meaning));
    body.append(row);
  }
  $("table").append(el("table", {}, el("thead", {}, head), body));
  if (two && ["rows", "ce_tokens", "split"].some((key) => m[0][key] !== m[1][key]))
    $("tiles").after(el("p", { class: "note warn" }, "A and B were not measured on the same rows or tokens (see all numbers), so small differences mean nothing."));
  $("numbers").hidden = !body.children.length;
}

function difference(a, b, format) {
  if (typeof a !== "number" || typeof b !== "number") return "–";
  const text = format === percent ? show(100 * (b - a)) + "\u00a0points" : show(b - a);
  return b > a ? "+" + text : text;
}

// ------------------------------------------------------------------------------------------------ curves, histogram
const TITLES = { fvu: "FVU", loss: "loss", l0: "L0", dead_share: "dead share", mse: "squared error", grad_norm: "gradient norm", lr: "learning rate", exact: "exact selection" };

function training() {
  const names = [...new Set(runs.flatMap((r) => Object.values(r.curves).flatMap((c) => Object.keys(c.y))))];
  if (!names.length) return;
  const order = Object.keys(TITLES), place = (n) => (order.includes(n) ? order.indexOf(n) : order.length);
  names.sort((a, b) => place(a) - place(b));
  const legend = el("p", { class: "legend" });
  runs.forEach((run, i) => legend.append(el("span", {}, el("span", { class: `key run-${i}` }), runs.length > 1 ? `${"AB"[i]} · ${run.name}` : "training batches")));
  if (runs.some((r) => r.curves.heldout)) legend.append(el("span", {}, "○  held-out rows"));
  $("charts").before(legend);
  const constant = [], drawn = new Map(), same = new Map();
  for (const name of names) {
    const series = runs.flatMap((run, i) => Object.entries(run.curves).filter(([, c]) => c.y[name]).map(([kind, c]) => (
      { x: c.x, y: c.y[name], run: i, heldout: kind === "heldout", label: `${runs.length > 1 ? "AB"[i] + " " : ""}${kind === "heldout" ? "held-out" : "training"}` })));
    const format = name.endsWith("_share") ? (x) => percent(x) : show;
    const values = new Set(series.flatMap((s) => s.y.filter((y) => y !== null))), title = TITLES[name] || name.replaceAll("_", " ");
    if (values.size === 1) constant.push(`${title} ${format([...values][0])}`);
    if (values.size < 2) continue;
    const shape = JSON.stringify(series.map((s) => [s.x, s.y]));
    if (drawn.has(shape)) same.set(drawn.get(shape), [...(same.get(drawn.get(shape)) || []), title]);
    else $("charts").append(curveChart(title, series, format));
    if (!drawn.has(shape)) drawn.set(shape, title);
  }
  for (const [title, others] of same) legend.append(el("span", {}, `same as ${title}: ${others.join(", ")}`));
  if (constant.length) legend.append(el("span", {}, `constant: ${constant.join(", ")}`));
  $("training").hidden = false;
}

function histogram() {
  const shown = runs.filter((r) => r.density);
  if (!shown.length) return;
  const box = $("histogram");
  box.replaceChildren();
  const dead = shown.map((r, i) => `${shown.length > 1 ? "AB"[i] + ": " : ""}${show(r.density.dead)} of ${show(r.shape.d_sae)} never on`).join(", ");
  box.append(el("p", { class: "legend" }, ...(shown.length > 1 ? shown.map((r, i) => el("span", {}, el("span", { class: `key run-${i}` }), `${"AB"[i]} · ${r.name}`)) : []), el("span", {}, dead)));
  const whole = state.low <= 0 && state.high >= 100;
  box.append(densityChart(shown, whole ? null : [logDensity(state.low), logDensity(state.high)]));
  $("density").hidden = false;
}

// ------------------------------------------------------------------------------------------------ latents
const state = { run: 0, query: "", scope: "all", low: 0, high: 100, sort: "id", found: [], drawn: 0, rest: 0 };
const current = () => runs[state.run];
const lowest = Math.floor(Math.min(-1, ...runs.flatMap((r) => r.latents.map((l) => Math.log10(l.d || 1)))));
const logDensity = (slider) => lowest * (1 - slider / 100);
const token = (run, id) => run.vocab[id];
const printable = (text) => text.replaceAll("\r", "␍").replaceAll("\n", "↵").replaceAll("\t", "⇥");

/** Lower-case text of a latent by scope, made when first searched. */
function textOf(run, latent) {
  if (!latent.text) {
    const contexts = latent.g.flatMap(([, found]) => found);
    latent.text = {
      peak: contexts.map(([, peak, tokens]) => token(run, tokens[peak])).join("\n").toLowerCase(),
      context: contexts.map(([, , tokens]) => tokens.map((t) => token(run, t)).join("")).join("\n").toLowerCase(),
      promoted: latent.p.map(([t]) => token(run, t)).join("\n").toLowerCase(),
    };
    latent.text.all = `${latent.text.context}\n${latent.text.promoted}`;
  }
  return latent.text[state.scope];
}

function matches(run, latent) {
  const q = state.query.toLowerCase(), log = Math.log10(latent.d || 1e-12);
  if ((state.low > 0 && log < logDensity(state.low)) || (state.high < 100 && log > logDensity(state.high))) return false;
  if (!q.trim()) return true;
  const number = q.trim().match(/^#?(\d+)$/);
  if (number && Number(number[1]) === latent.i) return true;
  return q.trim()[0] !== "#" && textOf(run, latent).includes(q);
}

const SORTS = {
  id: (a, b) => a.i - b.i,
  rare: (a, b) => a.d - b.d,
  dense: (a, b) => b.d - a.d,
  strong: (a, b) => Math.abs(b.m) - Math.abs(a.m),
  logit: (a, b) => (b.p.length ? b.p[0][1] : 0) - (a.p.length ? a.p[0][1] : 0),
  shuffle: (a, b) => ((a.i * 2654435761) % 4294967296) - ((b.i * 2654435761) % 4294967296),
};

/** Shows what matches: `first` cards at once, the rest of the page when the browser had time to breathe. */
function refresh(first = 40) {
  const run = current();
  state.found = run.latents.filter((l) => matches(run, l)).sort(SORTS[state.sort]);
  state.drawn = 0;
  $("cards").replaceChildren();
  draw(first);
  clearTimeout(state.rest);
  if (first < PAGE) state.rest = setTimeout(() => draw(PAGE - first), 30);
  $("count").textContent = `${show(state.found.length)} of ${show(run.latents.length)}`;
  $("none").hidden = state.found.length > 0;
}

function draw(n) {
  const part = document.createDocumentFragment();
  for (const latent of state.found.slice(state.drawn, state.drawn + n)) part.append(card(current(), latent));
  $("cards").append(part);
  state.drawn = Math.min(state.found.length, state.drawn + n);
  $("more").hidden = state.drawn >= state.found.length;
}

function card(run, latent) {
  const rows = el("div", { class: "rows" });
  let hidden = 0;
  for (const [name, found] of latent.g) found.forEach((context, i) => {
    const extra = i >= (name === "max" ? 4 : 1);
    hidden += extra;
    rows.append(contextRow(run, latent, i ? "" : name === "max" ? "max" : `${Math.round(100 * name)} %`, context, extra));
  });
  if (!latent.g.length) rows.append(el("p", { class: "note" }, "no text in the cache"));
  if (hidden) rows.append(el("button", { class: "unfold", type: "button", "data-more": hidden }, `${hidden} more`));
  const often = el("span", { class: "often", title: `on in ${percent(latent.d, 4)} of tokens, about 1 in ${show(Math.round(1 / latent.d))}` }, percent(latent.d));
  const side = el("aside", {}, often, el("a", { class: "id", href: `#latent-${latent.i}` }, `#${latent.i}`),
    el("div", { class: "spark", title: "how strong it is where it is on, from 0 to its strongest" }, spark(latent.h)),
    el("div", { class: "ends" }, el("span", {}, "0"), el("span", {}, `mean ${show(latent.a)}`), el("span", {}, show(latent.m))));
  if (latent.p.length) side.append(el("h4", {}, "promotes"), words(run, latent.p, "up"), el("h4", {}, "suppresses"), words(run, latent.s, "down"));
  if (latent.n.length) side.append(el("h4", {}, "nearest atoms"), near(latent.n, state.run));
  if (latent.o) side.append(el("h4", {}, `nearest in ${"BA"[state.run]}`), near(latent.o, 1 - state.run));
  return el("article", { class: "card", id: `latent-${latent.i}`, "aria-label": `latent ${latent.i}` }, side, rows);
}

function words(run, list, kind) {
  const top = Math.max(1e-9, ...list.map(([, x]) => Math.abs(x)));
  return el("div", { class: "words" }, ...list.map(([t, x]) => (
    el("span", { class: kind, "--w": (Math.abs(x) / top).toFixed(2), title: `${JSON.stringify(token(run, t))}  ${x > 0 ? "+" : ""}${show(x)}` }, printable(token(run, t))))));
}

function near(list, which) {
  return el("div", { class: "near" }, ...list.map(([i, cosine]) => el("span", {}, runs[which].byNumber.has(i) ? el("a", { href: `#latent-${i}`, "data-run": which }, `#${i}`) : `#${i}`, ` ${cosine.toFixed(2)}`)));
}

/** One line of text with the peak token in a fixed place; a click unfolds it. */
function contextRow(run, latent, label, [doc, peak, tokens, values], extra) {
  const strength = new Map();
  for (let i = 0; i < values.length; i += 2) strength.set(values[i], values[i + 1] / 1000);
  const piece = (i) => {
    const text = printable(token(run, tokens[i])), w = strength.get(i);
    if (!w && i !== peak) return text;
    const marked = text || "◌"; // a byte of a character that a neighbour shows
    const kind = (i === peak ? "peak" : "") + (w < 0 ? " neg" : "");
    return el("mark", { class: kind, "--w": Math.min(1, Math.abs(w || 0)).toFixed(2), title: `${JSON.stringify(token(run, tokens[i]))}  ${show((w || 0) * Math.abs(latent.m))}` }, marked);
  };
  const left = el("span", {}), right = el("span", { class: "right" });
  tokens.forEach((_, i) => (i < peak ? left : right).append(piece(i)));
  return el("div", { class: `row${label ? " first" : ""}${extra ? " extra" : ""}`, title: `document ${doc}` }, el("b", {}, label), el("i", {}, show((strength.get(peak) || 0) * Math.abs(latent.m))), el("span", { class: "left" }, left), right);
}

// ------------------------------------------------------------------------------------------------ events
function showRange() {
  const low = $("low"), high = $("high");
  state.low = Math.min(Number(low.value), Number(high.value));
  state.high = Math.max(Number(low.value), Number(high.value));
  const bar = document.querySelector(".track i");
  bar.style.left = state.low + "%";
  bar.style.right = 100 - state.high + "%";
  const from = state.low > 0 ? percent(10 ** logDensity(state.low), 2) : "", to = state.high < 100 ? percent(10 ** logDensity(state.high), 2) : "";
  $("range").textContent = from && to ? `${from} to ${to}` : from ? `above ${from}` : to ? `below ${to}` : "any";
}

function switchRun(which) {
  state.run = which;
  [...$("which").children].forEach((b, i) => b.setAttribute("aria-pressed", String(i === which)));
  $("latents-note").textContent = current().note;
}

function clearFilter() {
  $("search").value = state.query = "";
  $("low").value = 0;
  $("high").value = 100;
  showRange();
}

/** Brings a latent of the address bar into view, whatever the filter. */
function follow() {
  const number = location.hash.match(/^#latent-(\d+)$/);
  if (!number || !current().byNumber.has(Number(number[1]))) return;
  if (!$(`latent-${number[1]}`)) {
    clearFilter();
    refresh();
    while (!$(`latent-${number[1]}`) && state.drawn < state.found.length) draw(PAGE);
  }
  document.querySelectorAll(".card.here").forEach((c) => c.classList.remove("here"));
  const target = $(`latent-${number[1]}`);
  target.classList.add("here");
  target.scrollIntoView({ block: "start" });
}

function later(action, wait) {
  let timer = 0;
  return () => { clearTimeout(timer); timer = setTimeout(action, wait); };
}

function latents() {
  if (!runs.some((r) => r.latents.length)) return;
  runs.forEach((run) => { run.byNumber = new Map(run.latents.map((l) => [l.i, l])); });
  if (runs.length > 1) {
    runs.forEach((run, i) => $("which").append(el("button", { type: "button", class: `run-${i}`, title: run.name }, `${"AB"[i]} · ${run.name}`)));
    $("which").hidden = false;
    [...$("which").children].forEach((b, i) => b.addEventListener("click", () => { switchRun(i); refresh(); }));
  }
  const search = later(() => { state.query = $("search").value; refresh(); }, 120);
  const slide = later(() => { refresh(); histogram(); }, 120);
  $("search").addEventListener("input", search);
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("scope").addEventListener("change", () => { state.scope = $("scope").value; refresh(); });
  $("sort").addEventListener("change", () => { state.sort = $("sort").value; refresh(); });
  for (const id of ["low", "high"]) $(id).addEventListener("input", () => { showRange(); slide(); });
  $("clear").addEventListener("click", () => { clearFilter(); refresh(); histogram(); });
  $("more").addEventListener("click", () => draw(PAGE));
  $("cards").addEventListener("click", (event) => {
    const link = event.target.closest("a[data-run]"), unfold = event.target.closest(".unfold"), row = event.target.closest(".row");
    if (link && Number(link.dataset.run) !== state.run) { switchRun(Number(link.dataset.run)); refresh(); }
    if (link && link.hash === location.hash) follow();
    if (unfold) {
      const all = unfold.closest(".card").classList.toggle("all");
      unfold.textContent = all ? "fewer" : `${unfold.dataset.more} more`;
    } else if (row && !getSelection().toString()) row.classList.toggle("open");
  });
  if ("IntersectionObserver" in window)
    new IntersectionObserver((seen) => { if (seen[0].isIntersecting && !$("more").hidden) draw(PAGE); }, { rootMargin: "1500px" }).observe($("more"));
  addEventListener("hashchange", follow);
  $("latents").hidden = false;
  showRange();
  switchRun(0);
  refresh(PAGE);
  follow();
}

overview();
training();
histogram();
latents();
for (const section of document.querySelectorAll("main > section:not([hidden])")) {
  const heading = section.querySelector("h2");
  $("nav").append(el("a", { href: `#${section.id}` }, heading ? heading.textContent : "Overview"));
}
$("foot").textContent = data.foot;
