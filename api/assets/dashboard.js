"use strict";

/* ---- What the page is made of ---------------------------------------------------------------- */

const POLL_MS = 2000; // /health and /lag
const POINTS = 90; // of a chart: three minutes
const SHOWN_EVENTS = 200;
const SILENCE_MS = 40_000; // the stream sends at least every 15 s
const PATIENCE = "20s"; // for a posted event to be processed

const byId = (id) => document.getElementById(id);

/** An element with a class and children; text goes in as text, never as markup. */
function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

const number = new Intl.NumberFormat("en");
const round = (value) => number.format(value >= 10 || Number.isInteger(value) ? Math.round(value) : Number(value.toFixed(1)));
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3 });
const known = (value) => value !== null && value !== undefined;

function ago(time) {
  const seconds = Math.max(0, Math.round((Date.now() - Date.parse(time)) / 1000));
  if (!Number.isFinite(seconds)) return "an unknown time";
  if (seconds < 90) return `${seconds} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 129_600 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86_400)} days`;
}

function badge(id, kind, text) {
  const target = byId(id);
  // Untouched when it says the same: screen readers would read it again.
  if (target.textContent !== text) target.textContent = text;
  target.className = `badge ${kind}`;
}

/* ---- Requests -------------------------------------------------------------------------------- */

// sessionStorage may be switched off; then the key lives as long as the page.
let apiKey = "";
try { apiKey = sessionStorage.getItem("apiKey") ?? ""; } catch { /* as said */ }

function keepKey(key) {
  apiKey = key;
  try {
    if (key) sessionStorage.setItem("apiKey", key); else sessionStorage.removeItem("apiKey");
  } catch { /* as above */ }
}

let askedInsteadOf = null; // the key, or lack of one, for which the panel was opened

/** fetch with the key; a 401 or 403 asks for another, once: whoever closes the panel meant to. */
async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (apiKey) headers.Authorization = `Bearer ${apiKey}`;
  const reply = await fetch(path, { cache: "no-store", ...options, headers });
  if ((reply.status === 401 || reply.status === 403) && askedInsteadOf !== apiKey) {
    askedInsteadOf = apiKey;
    showKeyPanel(true);
    const refused = reply.status === 401 ? "This key is not known here." : `This key may not do all that this page shows: ${path} is closed to it.`;
    byId("key-note").textContent = apiKey ? refused : "This API asks for a key.";
  }
  return reply;
}

/** The sentence of a reply that is not a success. */
async function reason(reply) {
  const problem = await reply.json().catch(() => ({}));
  return (problem.errors?.length ? problem.errors.join("; ") : problem.detail) ?? `status ${reply.status}`;
}

function showKeyPanel(open) {
  byId("key-panel").hidden = !open;
  byId("key-button").setAttribute("aria-expanded", String(open));
}

byId("key-button").addEventListener("click", () => {
  showKeyPanel(byId("key-panel").hidden);
  if (!byId("key-panel").hidden) byId("key").focus();
});
byId("key-panel").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  keepKey(byId("key").value.trim());
  askedInsteadOf = null;
  byId("key-note").textContent = "";
  showKeyPanel(false);
  tail.restart();
  poll();
});
byId("key-forget").addEventListener("click", () => {
  byId("key").value = "";
  keepKey("");
  askedInsteadOf = "";
  byId("key-note").textContent = "Forgotten.";
  tail.restart();
});

/* ---- Charts ---------------------------------------------------------------------------------- */

const SVG = "http://www.w3.org/2000/svg";

function drawn(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

/** A chart of series `[{name, points}]`, the newest point at the right edge; null is a gap. */
function plot(series, height, label) {
  const width = 300;
  const top = Math.max(1, ...series.flatMap(({ points }) => points.filter(known)));
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", class: "plot", role: "img", "aria-label": label });
  svg.append(drawn("line", { x1: 0, y1: height - 0.5, x2: width, y2: height - 0.5 }));
  for (const { name, points } of series) {
    const at = points.map((value, index) => {
      const x = width - ((points.length - 1 - index) * width) / (POINTS - 1);
      return known(value) ? `${x.toFixed(1)} ${(height - 1 - (value / top) * (height - 4)).toFixed(1)}` : null;
    });
    for (const run of runs(at)) {
      const line = `M${run.join("L")}`;
      const [first, last] = [run[0].split(" ")[0], run.at(-1).split(" ")[0]];
      svg.append(drawn("path", { d: `${line}L${last} ${height}L${first} ${height}Z`, class: `${name} fill` }), drawn("path", { d: line, class: name }));
    }
  }
  return { svg, top };
}

/** The stretches of an array between its nulls. */
function runs(values) {
  const found = [[]];
  for (const value of values) {
    if (value !== null) found.at(-1).push(value);
    else if (found.at(-1).length) found.push([]);
  }
  return found.filter((run) => run.length);
}

function push(points, value) {
  points.push(value);
  if (points.length > POINTS) points.shift();
}

/* ---- The tail -------------------------------------------------------------------------------- */

/** Takes a text/event-stream apart (HTML standard, section 9.2.6). */
class Frames {
  #rest = "";
  /** The frames that this piece completes. */
  *push(text) {
    const lines = (this.#rest + text).split(/\r\n\r\n|\n\n/);
    this.#rest = lines.pop();
    for (const block of lines) {
      const frame = { id: null, event: "message", data: "" };
      for (const line of block.split(/\r?\n/)) {
        const [, name, value] = /^([^:]*):? ?(.*)$/.exec(line);
        if (name === "data") frame.data += frame.data ? `\n${value}` : value;
        else if (name === "id" || name === "event") frame[name] = value;
      }
      yield frame;
    }
  }
}

/** The reason in the data of an `end`. */
function readReason(data) {
  try { return JSON.parse(data).reason; } catch { return null; }
}

/** Why a stream is given up, as errors: what abort() is given is what the reader throws. */
const RESTART = new DOMException("started again", "AbortError");
const SILENCE = new DOMException("silent for too long", "AbortError");

/** Reads /events/stream by fetch, which, unlike EventSource, can send a key. Comes back by itself where it was. */
class Tail {
  #lastId = null;
  #current = null;
  #ended = null; // why, as the stream said last
  #counted = [];
  #total = 0;
  wanted = []; // frames that were not drawn yet, the newest last

  async run() {
    for (let wait = 500; ; wait = Math.min(wait * 2, 10_000)) {
      this.#current = new AbortController();
      this.#ended = null;
      try {
        await this.#read(this.#current, () => { wait = 500; });
        streamIs("warn", this.#ended ? `reconnecting: ${this.#ended}` : "reconnecting…");
      } catch (error) {
        streamIs("bad", error.name === "AbortError" ? "reconnecting…" : `no stream: ${error.message}`);
      }
      if (this.#current.signal.reason === RESTART) wait = 250;
      await new Promise((go) => setTimeout(go, wait * (0.75 + Math.random() / 2)));
    }
  }

  restart() {
    this.#current?.abort(RESTART);
  }

  async #read(controller, onBegin) {
    // Not text/event-stream: that is for an EventSource, which can't be told a status.
    const headers = { Accept: "*/*" };
    if (this.#lastId) headers["Last-Event-ID"] = this.#lastId;
    const reply = await request("/events/stream", { headers, signal: controller.signal });
    if (!reply.ok) {
      // An id that nobody knows any more would be refused for ever.
      if (reply.status === 400) this.#lastId = null;
      throw new Error(reply.status === 401 ? "a key is needed" : await reason(reply));
    }
    onBegin();
    streamIs("good", "live");
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    const frames = new Frames();
    for (;;) {
      const watchdog = setTimeout(() => controller.abort(SILENCE), SILENCE_MS);
      const { done, value } = await reader.read().finally(() => clearTimeout(watchdog));
      if (done) return;
      for (const frame of frames.push(value)) this.#take(frame);
    }
  }

  #take(frame) {
    if (frame.id) this.#lastId = frame.id;
    if (frame.event === "end") this.#ended = readReason(frame.data);
    if (frame.event === "message" && frame.data) this.#total += 1;
    else if (frame.event !== "reset") return;
    this.wanted.push(frame);
    // Under load only the newest are ever seen; the others are counted.
    if (this.wanted.length > 20 * SHOWN_EVENTS) this.wanted.splice(0, this.wanted.length - 10 * SHOWN_EVENTS);
  }

  /** Events a second over the last ten; to be asked every POLL_MS. */
  rate() {
    this.#counted.push({ at: performance.now(), total: this.#total });
    if (this.#counted.length > 6) this.#counted.shift();
    const [first, last] = [this.#counted[0], this.#counted.at(-1)];
    return last.at > first.at ? ((last.total - first.total) * 1000) / (last.at - first.at) : null;
  }
}

const own = new Set(); // the ids of the events that this page has posted
let paused = false;
let stream = ["warn", "connecting…"]; // as it is, also while the badge says that the tail is paused

function streamIs(kind, text) {
  stream = [kind, text.slice(0, 60)];
  showStream();
}

function showStream() {
  // A pause is not to hide that nothing comes.
  const [kind, text] = paused && stream[0] === "good" ? ["warn", "paused"] : stream;
  badge("stream", kind, text);
}

const tail = new Tail();

function row(event) {
  const time = element("td", "time", clock.format(new Date(event.timestamp)));
  const user = element("td", "user", event.userId);
  user.title = event.userId;
  const payload = element("td", "payload mono", JSON.stringify(event.payload).slice(0, 400));
  const made = element("tr", own.has(event.eventId) ? "own" : "", time, element("td", "", element("span", "type", event.eventType)), user, payload);
  made.dataset.id = event.eventId;
  made.title = event.eventId;
  return made;
}

function gap() {
  const cell = element("td", "", "Some events are missing here; the list at /events/processed has them.");
  cell.colSpan = 4;
  return element("tr", "gap", cell);
}

function wantedRow(frame, text, type) {
  if (frame.event === "reset") return gap();
  if (text && !frame.data.toLowerCase().includes(text)) return null;
  try {
    const event = JSON.parse(frame.data);
    return type && event.eventType !== type ? null : row(event);
  } catch {
    return null;
  }
}

function drawEvents() {
  if (paused) {
    byId("pause").textContent = `Resume (${number.format(tail.wanted.length)})`;
    return;
  }
  const frames = tail.wanted.splice(0);
  if (!frames.length) return;
  const [text, type] = [byId("filter").value.trim().toLowerCase(), byId("filter-type").value];
  const rows = [];
  for (let at = frames.length - 1; at >= 0 && rows.length < SHOWN_EVENTS; at -= 1) {
    const made = wantedRow(frames[at], text, type);
    if (made) rows.push(made);
  }
  const body = byId("events");
  body.prepend(...rows);
  while (body.children.length > SHOWN_EVENTS) body.lastChild.remove();
  byId("no-events").hidden = body.children.length > 0;
}

/** What is shown already is filtered as well. */
function refilter() {
  const [text, type] = [byId("filter").value.trim().toLowerCase(), byId("filter-type").value];
  for (const shown of byId("events").children) {
    const fits = !text || `${shown.textContent} ${shown.title}`.toLowerCase().includes(text);
    shown.hidden = !(fits && (!type || shown.querySelector(".type")?.textContent === type));
  }
}

byId("filter").addEventListener("input", refilter);
byId("filter-type").addEventListener("change", refilter);
byId("clear").addEventListener("click", () => {
  byId("events").replaceChildren();
  byId("no-events").hidden = false;
});
byId("pause").addEventListener("click", () => {
  paused = !paused;
  byId("pause").setAttribute("aria-pressed", String(paused));
  byId("pause").textContent = "Pause";
  showStream();
  drawEvents();
});

/* ---- Health, workers, lag -------------------------------------------------------------------- */

const PARTS = { producer: "Kafka", store: "Redis", consumer: "Workers" };

function drawHealth(health) {
  badge("overall", health.status === "ok" ? "good" : "bad", health.status === "ok" ? "all well" : "degraded");
  byId("version").textContent = health.version;
  byId("parts").replaceChildren(...Object.entries(health.checks).map(([name, check]) => {
    const title = element("b", "", PARTS[name] ?? name);
    const text = element("div", "", title, ` ${health[name] ?? (check.ok ? "ok" : "not ok")}`, element("small", "", `${check.reason} · for ${ago(check.since)}`));
    const dot = element("span", "dot");
    dot.setAttribute("aria-hidden", "true");
    return element("li", check.ok ? "" : "bad", dot, text);
  }));
  drawWorkers(health.workers);
}

function drawWorkers(workers) {
  const note = byId("workers-note");
  byId("workers-scroll").hidden = !workers?.length;
  note.hidden = Boolean(workers?.length);
  if (workers === undefined) note.textContent = "This API does not name its workers.";
  else if (workers === null) note.textContent = "Unknown while Redis does not answer.";
  else if (!workers.length) note.textContent = "No worker is alive.";
  byId("workers").replaceChildren(...(workers ?? []).map((worker) => element("tr", "",
    element("td", "", worker.name),
    element("td", "", ranges(worker.partitions)),
    element("td", "number", number.format(worker.stored)),
    element("td", "number", known(worker.lag) ? number.format(worker.lag) : "?"),
    element("td", "time", `${ago(worker.seen)} ago`))));
}

/** `0, 1, 2, 5` as `0–2, 5`. */
function ranges(numbers) {
  const found = [];
  for (const value of [...numbers].sort((a, b) => a - b)) {
    const last = found.at(-1);
    if (last && value === last[1] + 1) last[1] = value; else found.push([value, value]);
  }
  return found.map(([from, to]) => (from === to ? `${from}` : `${from}–${to}`)).join(", ") || "none";
}

const lags = new Map(); // partition → points
const rates = { in: [], out: [] };

function drawLag(lag) {
  byId("lag-total").textContent = known(lag.totalLag) ? number.format(lag.totalLag) : "?";
  byId("lag-total-note").textContent = known(lag.lagSeconds) ? `the oldest waits ${round(lag.lagSeconds)} s` : "published, not yet processed";
  for (const { partition, lag: records } of lag.partitions) {
    if (!lags.has(partition)) lags.set(partition, []);
    push(lags.get(partition), records ?? null);
  }
  byId("partitions").replaceChildren(...lag.partitions.map(({ partition, lag: records, worker }) => {
    const text = known(records) ? number.format(records) : "?";
    const { svg } = plot([{ name: "in", points: lags.get(partition) }], 30, `lag of partition ${partition}, now ${text}`);
    const made = element("div", "partition", element("span", "", `P ${partition}`), svg, element("b", "", text));
    made.title = worker ? `read by ${worker}` : "nobody reads it";
    return made;
  }));
  const unknown = lag.unknownPartitions ?? [];
  byId("lag-note").textContent = unknown.length ? `Nobody says how far partition ${ranges(unknown)} is.` : "The last three minutes of each; records that are published and not yet processed.";
}

/** By reason, the most frequent first. No panel where nobody counts them. */
function drawDead(reasons) {
  byId("dead").hidden = !reasons;
  if (!reasons) return;
  const counts = Object.entries(reasons).sort(([, one], [, other]) => other - one);
  byId("dead-total").textContent = number.format(counts.reduce((sum, [, count]) => sum + count, 0));
  const listed = counts.map(([reason, count]) => `${reason} ${number.format(count)}`).join(", ");
  byId("dead-note").textContent = listed ? `by reason: ${listed}` : "records that can't be events";
}

function noLag(why) {
  byId("lag-total").textContent = "–";
  byId("lag-total-note").textContent = why;
  byId("lag-note").textContent = why;
  byId("partitions").replaceChildren();
}

function drawRates(lag) {
  const counted = tail.rate();
  push(rates.in, lag?.arrivalRate ?? null);
  push(rates.out, lag?.drainRate ?? counted);
  for (const name of ["in", "out"]) {
    const value = rates[name].at(-1);
    byId(`rate-${name}`).textContent = known(value) ? round(value) : "–";
  }
  byId("rate-out-note").textContent = known(lag?.drainRate) ? "as the workers say" : "the last 10 s";
  byId("rate-in-note").textContent = known(lag?.arrivalRate) ? "as the workers say" : "not known";
  const series = ["in", "out"].map((name) => ({ name, points: rates[name] }));
  const { svg, top } = plot(series, 132, `events per second over three minutes; published ${byId("rate-in").textContent}, processed ${byId("rate-out").textContent}`);
  byId("rates").replaceChildren(element("span", "top-value", round(top)), svg);
}

/** The JSON of a path, or why there is none. A /health that is not well is JSON too. */
async function read(path) {
  try {
    const reply = await request(path, { signal: AbortSignal.timeout(5 * POLL_MS) });
    const json = reply.headers.get("content-type")?.startsWith("application/json");
    if (json) return { json: await reply.json() };
    return { why: reply.status === 404 ? `this API has no ${path}` : await reason(reply), status: reply.status };
  } catch (error) {
    return { why: `no answer from the API: ${error.message}`, status: 0 };
  }
}

async function poll() {
  const [health, lag] = await Promise.all([read("/health"), read("/lag")]);
  if (health.json) drawHealth(health.json);
  else badge("overall", "bad", health.status === 0 ? "API does not answer" : health.why.slice(0, 60));
  if (lag.json) drawLag(lag.json); else noLag(lag.why);
  drawDead(health.json?.deadLetters);
  drawRates(lag.json);
}

async function pollForEver() {
  for (;;) {
    if (!document.hidden) await poll();
    await new Promise((go) => setTimeout(go, POLL_MS));
  }
}

/* ---- Sending an event ------------------------------------------------------------------------ */

/** A step on an event's way; gives a function that says how it ended. */
function step(title) {
  const [took, text, detail] = [element("span", "took"), element("b", "", title), element("small")];
  const made = element("li", "wait", took, text, detail);
  const begun = performance.now();
  byId("way").append(made);
  return (ok, words, more) => {
    made.className = ok ? "" : "bad";
    took.textContent = `${round(performance.now() - begun)} ms`;
    text.textContent = words;
    detail.textContent = more;
  };
}

/** A request that may be sent again under the same key: what was its body, and is its outcome open? */
const attempt = { key: null, body: null };

async function send(body) {
  if (attempt.body !== body) Object.assign(attempt, { key: crypto.randomUUID?.() ?? String(Math.random()).slice(2), body });
  byId("way").replaceChildren();
  const accepted = step("Sending…");
  let reply;
  try {
    const headers = { "Content-Type": "application/json", "Idempotency-Key": `"${attempt.key}"` };
    reply = await request("/events/generate", { method: "POST", headers, body });
  } catch (error) {
    accepted(false, "No answer", `${error.message}. Send it again: the same Idempotency-Key makes it the same event.`);
    return;
  }
  if (!reply.ok) {
    accepted(false, `Refused with ${reply.status}`, await reason(reply));
    if (reply.status < 500) attempt.body = null;
    return;
  }
  const { eventId, duplicate } = await reply.json();
  attempt.body = null;
  own.add(eventId);
  document.querySelector(`#events tr[data-id="${CSS.escape(eventId)}"]`)?.classList.add("own");
  accepted(true, duplicate ? "Accepted before" : "Accepted: the brokers have it", eventId);
  await follow(eventId);
}

async function follow(eventId) {
  const processed = step("Waiting for a worker…");
  try {
    const reply = await request(`/events/${encodeURIComponent(eventId)}?wait=${PATIENCE}`);
    if (!reply.ok) return processed(false, reply.status === 404 ? "Not processed yet" : `Not processed: ${reply.status}`, await reason(reply));
    const { processing, timestamp } = await reply.json();
    const after = Date.parse(processing.processedAt) - Date.parse(timestamp);
    return processed(true, "Processed", `by ${processing.worker}, partition ${processing.partition}, offset ${processing.offset}, ${round(after)} ms after its timestamp`);
  } catch (error) {
    return processed(false, "No answer", error.message);
  }
}

/** The body, the payload as it was typed; null when it is no object. */
function composed() {
  const field = byId("payload");
  const text = field.value.trim() || "{}";
  let value = null;
  try { value = JSON.parse(text); } catch { /* said below */ }
  const good = value !== null && typeof value === "object" && !Array.isArray(value);
  field.setCustomValidity(good ? "" : "The payload must be a JSON object, such as {\"device\": \"phone\"}.");
  if (!field.reportValidity()) return null;
  return `{"userId":${JSON.stringify(byId("user").value)},"eventType":${JSON.stringify(byId("type").value)},"payload":${text}}`;
}

byId("payload").addEventListener("input", () => byId("payload").setCustomValidity(""));
byId("send").addEventListener("submit", async (submitted) => {
  submitted.preventDefault();
  const body = composed();
  if (body === null) return;
  byId("send-button").disabled = true;
  await send(body).finally(() => { byId("send-button").disabled = false; });
});

/** The types that this API takes are in its description. */
async function fillTypes() {
  for (;;) {
    const { json } = await read("/openapi.json");
    const types = json?.components.schemas.EventType.enum;
    if (types) {
      byId("type").replaceChildren(...types.map((type) => new Option(type, type)));
      byId("filter-type").append(...types.map((type) => new Option(type, type)));
      return;
    }
    await new Promise((go) => setTimeout(go, POLL_MS));
  }
}

/* ---- All of it ------------------------------------------------------------------------------- */

byId("key").value = apiKey;
fillTypes();
tail.run();
pollForEver();
setInterval(drawEvents, 200);
