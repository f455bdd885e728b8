"use strict";

const OWNERS = ["prefill", "decode", "resident", "unreported", "idle", "unattributed", "downtime"];
const HISTORY_SECONDS = 300;
const history = { power: [], tokens: [], good: [] };
const shown = new Map();

/* Small tools */

function el(tag, properties, ...children) {
  const element = document.createElement(tag);
  const { width, ...rest } = properties || {};
  if (width !== undefined) element.style.width = `${width}%`;
  for (const [name, value] of Object.entries(rest)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/* Replaces the content of a section, only when what it shows has changed: a reader's selection and focus stay. */
function show(id, input, render) {
  const key = JSON.stringify(input);
  if (shown.get(id) === key) return;
  shown.set(id, key);
  const content = render(input);
  document.getElementById(id).replaceChildren(...(Array.isArray(content) ? content : [content]));
}

const known = (value) => value !== null && value !== undefined;

function number(value, digits = 3) {
  if (!known(value)) return "–";
  if (value === 0) return "0";
  if (Math.abs(value) >= 100) return Math.round(value).toLocaleString("en-US");
  return Number(value.toPrecision(digits)).toLocaleString("en-US", { maximumSignificantDigits: digits });
}

function scaled(value, unit) {
  if (!known(value)) return "–";
  for (const [factor, prefix] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= factor) return `${(value / factor).toPrecision(3)} ${prefix}${unit.length > 1 ? " " : ""}${unit}`;
  }
  return `${number(value)} ${unit}`;
}

const joules = (microjoules) => scaled(microjoules / 1e6, "J");
const percent = (part, whole) => (whole > 0 ? `${((100 * part) / whole).toFixed(1)} %` : "–");
const milliseconds = (seconds) => (known(seconds) ? `${number(seconds * 1e3)} ms` : "–");
const seconds = (nanoseconds) => nanoseconds / 1e9;
const sum = (values) => values.reduce((total, value) => total + value, 0);

function table(caption, columns, rows) {
  if (!rows.length) return el("p", { className: "empty" }, caption);
  const head = columns.map(([name, right]) => el("th", { scope: "col", className: right ? "right" : "" }, name));
  const body = rows.map((cells) =>
    el("tr", {}, ...cells.map((cell, i) => el("td", { className: columns[i][1] ? "right" : "" }, cell))));
  return el("table", {}, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...body));
}

/* A stacked bar of owners; `parts` are [class, microjoules]. */
function stack(parts, whole, thin) {
  const text = parts.filter(([, part]) => part > 0).map(([name, part]) => `${name} ${percent(part, whole)}`).join(", ");
  const bar = el("div", { className: thin ? "stack thin" : "stack", role: "img", "aria-label": text, title: text });
  for (const [name, part] of parts) {
    if (part > 0 && whole > 0) bar.append(el("i", { className: name, width: (100 * part) / whole }));
  }
  return bar;
}

function sparkline(values) {
  const points = values.filter(known);
  if (points.length < 3) return null;
  const low = Math.min(...points);
  const range = Math.max(...points) - low || 1;
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", "0 0 100 30");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS(space, "polyline");
  const place = (value, i) => `${((100 * i) / (points.length - 1)).toFixed(1)},${(28 - (26 * (value - low)) / range).toFixed(1)}`;
  line.setAttribute("points", points.map(place).join(" "));
  svg.append(line);
  return svg;
}

function remember(series, value) {
  series.push(value);
  if (series.length > HISTORY_SECONDS) series.shift();
  return series;
}

/* Sections */

function nodeNote({ watts, level, beyond_parts_watts: beyond, incomplete }) {
  const missing = incomplete.map((set) => `${set.level}s incomplete: ${set.heard} of ${set.expected}`);
  if (!known(watts)) return missing.join(" · ");
  const rest = known(beyond) ? `, ${number(beyond)} W beyond these` : "";
  return [`${level}: ${number(watts)} W${rest}`, ...missing].join(" · ");
}

function tile(name, value, unit, note, line) {
  return el("div", { className: "tile" },
    el("div", { className: "name" }, name),
    el("div", { className: "value" }, value, " ", el("small", {}, unit)),
    el("div", { className: "note" }, note),
    sparkline(line || []));
}

function tiles(data) {
  const watts = data.devices.filter((device) => known(device.watts)).map((device) => device.watts);
  const power = watts.length ? sum(watts) : null;
  const boundaries = Object.entries(data.tokens_per_joule);
  const [boundary, tokens] = boundaries.find(([name]) => name === "compute") || boundaries[0] || ["compute", null];
  const others = boundaries.filter(([name]) => name !== boundary).map(([name, value]) => `${name} ${number(value)}`);
  const slo = data.slos[0];
  const good = slo ? slo.good_tokens_per_joule[boundary] : null;
  const judged = slo ? sum(["good", "late", "failed"].map((verdict) => slo[`${verdict}_requests`] || 0)) : 0;
  const rate = sum(data.engines.map((engine) => engine.generation_tokens_per_second || 0));
  const finished = sum(Object.values(data.requests));
  const perMegawatt = known(tokens) ? `= ${scaled(tokens * 1e6, "tokens/s")} per MW` : "no tokens in the last minute";
  return [
    tile("Power", number(power), "W", nodeNote(data.node_power) || `${watts.length} devices`,
      remember(history.power, power)),
    tile(`Tokens per joule · ${boundary}`, number(tokens), "tokens/J", [perMegawatt, ...others].join(" · "),
      remember(history.tokens, tokens)),
    tile(slo ? `Goodput · ${slo.slo}` : "Goodput", number(good), "good tokens/J",
      slo ? `${percent(slo.good_requests || 0, judged)} of requests within the SLO` : "no [[slo]] is configured",
      remember(history.good, good)),
    tile("Generation", number(rate), "tokens/s", `${number(finished)} requests finished`),
    tile("Measured", joules(data.total.measured_uj).replace(/ (\S+)$/, ""), joules(data.total.measured_uj).split(" ")[1] || "",
      `${joules(data.total.open_uj)} still open`),
  ];
}

function deviceRow(device) {
  const limit = device.power_limit_watts || device.max_watts;
  const scale = limit || device.peak_watts || device.watts || 1;
  const bar = el("div", { className: "bar", role: "meter", "aria-label": `power of ${device.name}`,
    "aria-valuemin": "0", "aria-valuemax": String(scale), "aria-valuenow": String(device.watts || 0) });
  if (known(device.watts)) {
    const share = Math.min(100, (100 * device.watts) / scale);
    bar.append(el("i", { className: share > 95 ? "high" : "", width: share }));
  }
  if (known(device.peak_watts)) {
    const peak = el("b", { title: `peak of the last minute: ${number(device.peak_watts)} W` });
    peak.style.left = `min(${(100 * device.peak_watts) / scale}%, 100% - 2px)`;
    bar.append(peak);
  }
  const watts = known(device.watts) ? `${number(device.watts)} W` : "silent";
  return [
    el("div", {}, device.name, " ", el("span", { className: "subtle" }, device.product || device.kind || "")),
    bar,
    el("div", { className: "right" }, watts, el("span", { className: "subtle" }, limit ? ` / ${number(limit)}` : "")),
  ];
}

function meterRow(meter) {
  const watts = known(meter.watts) ? `${number(meter.watts)} W` : "silent";
  return [el("div", {}, meter.name), el("div", { className: "subtle" }, meter.kind), el("div", { className: "right" }, watts)];
}

function devices({ leaves, meters }) {
  if (!leaves.length && !meters.length) return el("p", { className: "empty" }, "No meter gives readings; see Sources.");
  const heading = meters.length ? [el("div", { className: "heading" }, "Meters that contain these devices")] : [];
  return [...leaves.flatMap(deviceRow), ...heading, ...meters.flatMap(meterRow)];
}

const ownerParts = (book) => [...OWNERS, "open"].map((name) => [name, book[`${name}_uj`] || 0]);

function books({ total, owners, balance }) {
  const parts = ownerParts(total);
  const legend = parts.map(([name, part]) => el("li", {},
    el("span", { className: `swatch ${name}` }), name,
    el("span", { className: "share" }, percent(part, total.measured_uj)),
    el("span", { className: "amount" }, joules(part))));
  const identity = balance === 0
    ? `owners + open = measured, exact to the microjoule: ${joules(total.measured_uj)}`
    : `the books are out by ${balance} µJ`;
  const rows = owners.map((row) => {
    const own = ownerParts(row);
    const whole = sum(own.map(([, part]) => part));
    const served = sum(["prefill", "decode", "resident"].map((name) => row[`${name}_uj`] || 0));
    return [row.engine || "no engine", el("span", { className: "soft" }, [row.model, row.quality === "estimated" ? "estimated" : ""].filter(Boolean).join(" · ")),
      stack(own, whole, true), percent(served, whole), joules(whole)];
  });
  return [stack(parts, total.measured_uj), el("ul", { className: "legend" }, ...legend),
    el("p", { className: "identity" }, balance === 0 ? "✓ " : "✗ ", identity),
    el("div", { className: "scroll" },
      table("", [["engine"], ["model"], ["owners"], ["served", true], ["energy", true]], rows))];
}

function engines({ list, now }) {
  const rows = list.map((engine) => {
    const sampled = known(engine.coverage) && engine.coverage < 0.9;
    const coverage = known(engine.coverage)
      ? el("span", { className: sampled ? "pill warn" : "", title: sampled ? "events are sampled or lost on their way" : "" },
        `${(100 * engine.coverage).toFixed(1)} %`)
      : "–";
    return [engine.name, el("span", { className: "soft" }, [engine.model, engine.version].filter(Boolean).join(" · ")),
      engine.devices.length > 3 ? `${engine.devices.length} devices` : engine.devices.join(", "), number(engine.requests_running),
      number(engine.requests_waiting), number(engine.generation_tokens_per_second), coverage,
      number((engine.unreported_tokens || {}).generation),
      known(engine.watermark_ns) ? `${Math.max(0, Math.round(seconds(now - engine.watermark_ns)))} s` : "–"];
  });
  return table("No engine is known.", [["engine"], ["model"], ["devices"], ["running", true], ["waiting", true],
    ["tokens/s", true], ["event coverage", true], ["unreported tokens", true], ["books behind", true]], rows);
}

function perJoule(boundaries) {
  const entries = Object.entries(boundaries);
  if (!entries.length) return "–";
  const [first] = entries.filter(([name]) => name === "compute").concat(entries);
  return el("span", { title: entries.map(([name, value]) => `${name} ${number(value)}`).join(" · ") }, number(first[1]));
}

function slos(list) {
  const rows = list.map((slo) => {
    const [good, late, failed] = ["good", "late", "failed"].map((verdict) => slo[`${verdict}_requests`] || 0);
    const energy = sum(["good", "late", "failed"].map((verdict) => slo[`${verdict}_uj`] || 0));
    return [slo.slo, percent(good, good + late + failed), number(good), number(late), number(failed),
      percent(energy - (slo.good_uj || 0), energy),
      perJoule(slo.good_tokens_per_joule)];
  });
  return table("No service level is configured: add [[slo]] with ttft, tpot or e2el in milliseconds.",
    [["SLO"], ["attained", true], ["good", true], ["late", true], ["failed", true], ["energy wasted", true],
      ["good tokens/J", true]], rows);
}

function requests(list) {
  const rows = list.map((receipt) => {
    const parts = ["prefill", "decode", "resident"].map((name) => [name, receipt[`joules_${name}`]]);
    const verdicts = Object.entries(receipt.good);
    const missed = verdicts.filter(([, good]) => !good).map(([name]) => name);
    const link = el("a", { className: "mono", href: `/api/v1/requests/${encodeURIComponent(receipt.id)}`, title: receipt.id },
      receipt.id.length > 26 ? `${receipt.id.slice(0, 14)}…${receipt.id.slice(-8)}` : receipt.id);
    const band = known(receipt.sigma_joules) ? ` ± ${number(receipt.sigma_joules, 2)}` : "";
    const outcome = receipt.outcome === "completed" ? "completed" : el("span", { className: "pill warn" }, receipt.outcome);
    return [link, el("span", { className: "soft short", title: receipt.model }, receipt.model), outcome,
      `${number(receipt.prompt_tokens)} → ${number(receipt.generation_tokens)}`, milliseconds(receipt.ttft_seconds),
      milliseconds(receipt.tpot_seconds), `${number(receipt.joules)}${band} J`, stack(parts, receipt.joules, true),
      receipt.generation_tokens ? `${number(receipt.joules / receipt.generation_tokens)} J` : "–",
      verdicts.length ? (missed.length ? `missed ${missed.join(", ")}` : "met") : "–",
      receipt.provisional ? el("span", { className: "soft" }, "provisional") : receipt.validity === "ok" ? "ok" : el("span", { className: "pill warn" }, receipt.validity)];
  });
  return table("No request has finished yet.", [["id"], ["model"], ["outcome"], ["tokens in → out", true], ["TTFT", true],
    ["TPOT", true], ["energy", true], ["prefill · decode · resident"], ["per token", true], ["SLOs"], ["validity"]], rows);
}

function sources(list) {
  if (!list.length) return el("li", {}, "No source is configured.");
  const kind = (state) => (state === "ok" ? "ok" : ["stale", "released", "absent"].includes(state) ? "warn" : "bad");
  const calm = list.filter((source) => source.state === "ok");
  const others = list.filter((source) => source.state !== "ok");
  return [...others, ...calm].map((source) => el("li", { className: source.message || source.mend ? "detail" : "" },
    source.source, " ", el("span", { className: `pill ${kind(source.state)}` }, source.state), " ",
    source.message ? el("span", { className: "soft" }, source.message) : null,
    source.mend ? el("code", {}, source.mend) : null));
}

function asSource(sink) {
  const minutes = Math.floor(sink.behind_seconds / 60);
  return { source: `sink ${sink.sink}`, state: sink.up ? "ok" : "down", message: minutes ? `${number(minutes)} min behind` : "" };
}

/* Any figure that the demo gives: a name that ends in _percent, _ratio, _joules or _uj is shown in that unit. */
function graded(figures) {
  return Object.entries(figures).flatMap(([name, value]) => {
    let text = typeof value === "number" ? number(value, 4) : String(value ?? "–");
    let label = name;
    if (typeof value === "number") {
      const units = [["_percent", (v) => `${v.toFixed(2)} %`], ["_ratio", (v) => `${(100 * v).toFixed(2)} %`],
        ["_uj", joules], ["_joules", (v) => scaled(v, "J")]];
      const unit = units.find(([suffix]) => name.endsWith(suffix));
      if (unit) [label, text] = [name.slice(0, -unit[0].length), unit[1](value)];
    }
    return el("div", {}, el("dt", {}, label.replaceAll("_", " ")), el("dd", {}, text));
  });
}

/* The page */

function state(text, kind) {
  const pill = document.getElementById("state");
  if (pill.textContent !== text) pill.textContent = text;
  pill.className = `pill ${kind}`;
}

function render(data) {
  document.getElementById("node").textContent = data.node;
  document.title = data.node ? `${data.node} – jouled` : "jouled";
  document.getElementById("clock").textContent = `${new Date(data.time_ns / 1e6).toLocaleTimeString()} · commit ${data.sequence}`;
  const broken = data.degraded.length || data.sources.some((source) => ["down", "denied", "quarantined"].includes(source.state));
  state(broken ? "degraded" : "live", broken ? "warn" : "ok");
  document.getElementById("degraded").hidden = !data.degraded.length;
  show("degraded", data.degraded, (sentences) => sentences.map((sentence) => el("div", {}, sentence)));
  document.getElementById("tiles").replaceChildren(...tiles(data));
  show("devices", { leaves: data.devices, meters: data.meters }, devices);
  show("books", { total: data.total, owners: data.owners, balance: data.balance_uj }, books);
  show("engines", { list: data.engines, now: data.time_ns }, engines);
  show("slos", data.slos, slos);
  show("requests", data.recent, requests);
  show("sources", [...data.sources, ...data.sinks.map(asSource)], sources);
  const figures = data.extra.graded;
  document.getElementById("graded-card").hidden = !figures;
  if (figures) show("graded", figures, graded);
}

async function poll() {
  if (!document.hidden) {
    try {
      const answer = await fetch("/api/v1/snapshot", { signal: AbortSignal.timeout(5000) });
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      render(await answer.json());
    } catch (error) {
      if (!(error instanceof TypeError) && !(error instanceof DOMException)) console.error(error);
      state("no answer from jouled", "bad");
    }
  }
  setTimeout(poll, 1000);
}

poll();
