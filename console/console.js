// The page of the server: try a picture, copy client code, watch, models. No library; all addresses are relative to the mount point.

const BASE = new URL("..", location.href);
const SVG = "http://www.w3.org/2000/svg";
const COLOURS = ["#e63c3c", "#3c78e6", "#28aa5a", "#e6961e", "#9650c8", "#1eaabe", "#dc5aa0", "#787828"];
const $ = (selector) => document.querySelector(selector);

const state = { about: null, picture: null, answer: null, routines: [], asked: 0 };

// --- the server ---------------------------------------------------------------------------------------------

/** Ask the server; throws an Error with its own words. A 401 asks for the key again. */
async function ask(path, options = {}) {
  const key = sessionStorage.getItem("serving-key");
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const response = await fetch(new URL(path, BASE), { ...options, headers }).catch(() => {
    throw new Error("The server cannot be reached.");
  });
  if (response.ok) return response;
  const text = await errorText(response);
  // An answer to a key that has since been replaced says nothing about the new one.
  if (response.status === 401 && key === sessionStorage.getItem("serving-key")) askForKey(text);
  throw new Error(text);
}

async function errorText(response) {
  const text = await response.text();
  try {
    const body = JSON.parse(text);
    const error = body.error ?? body.body?.error ?? text;
    return [error, ...(body.details ?? []), ...(body.request_id ? [`Request ${body.request_id}`] : [])].join("\n");
  } catch {
    return text || `${response.status} ${response.statusText}`;
  }
}

/** Ask for the key; `reason` is why the last one did not do. */
function askForKey(reason = "") {
  if (sessionStorage.getItem("serving-key")) $("#key-error").textContent = reason;
  sessionStorage.removeItem("serving-key");
  if (!$("#key-dialog").open) $("#key-dialog").showModal();
  $("#key-input").focus();
}

/** Run something for the user and show what goes wrong, in the server's words. */
async function attempt(work) {
  try {
    await work();
    showError("");
  } catch (error) {
    showError(error.message);
  }
}

/** Only the answer to the latest question is shown: true as long as nothing else was asked or chosen. */
function newest() {
  const own = ++state.asked;
  return () => own === state.asked;
}

function showError(text) {
  $("#error").textContent = text;
  $("#error").hidden = !text;
}

// --- building blocks ----------------------------------------------------------------------------------------

/** An element with properties and children; text is always text, never markup. */
function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

function draw(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function option(value, text = value) {
  return make("option", { value, textContent: text });
}

/** A number with its unit; "-" where the server says nothing. */
const show = (value, unit = "", digits = 0) => (value == null || Number.isNaN(value) ? "-" : `${Number(value).toFixed(digits)}${unit}`);

/** JSON to read: indented, but a point or a row of numbers on one line. A raw line break is never inside a JSON string. */
function pretty(value) {
  return JSON.stringify(value, null, 1).replace(/\[\n[-+\d.eE,\s]*\n\s*\]/g, (numbers) => numbers.replace(/\s+/g, "").replaceAll(",", ", "));
}

/** Copy what an element says. Without https a browser has no clipboard object, so the text is selected and copied. */
async function copyText(element, button) {
  if (navigator.clipboard) await navigator.clipboard.writeText(element.textContent);
  else {
    getSelection().selectAllChildren(element);
    if (!document.execCommand("copy")) throw new Error("The browser does not let the page copy; the code is selected.");
  }
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

// --- tabs ---------------------------------------------------------------------------------------------------

const tabs = [...document.querySelectorAll("[role=tab]")];

function selectTab(tab) {
  for (const other of tabs) {
    const chosen = other === tab;
    other.setAttribute("aria-selected", chosen);
    other.tabIndex = chosen ? 0 : -1;
    document.getElementById(other.getAttribute("aria-controls")).hidden = !chosen;
  }
  if (tab.id === "tab-connect") attempt(showConnect);
  if (tab.id === "tab-models") attempt(showModels);
  if (tab.id === "tab-watch") watch();
}

for (const tab of tabs) {
  tab.addEventListener("click", () => selectTab(tab));
  tab.addEventListener("keydown", (event) => {
    const at = tabs.indexOf(tab), last = tabs.length - 1;
    const next = tabs[{ ArrowRight: at === last ? 0 : at + 1, ArrowLeft: at === 0 ? last : at - 1, Home: 0, End: last }[event.key]];
    if (!next) return;
    event.preventDefault();
    next.focus();
    selectTab(next);
  });
}

// --- try it -------------------------------------------------------------------------------------------------

const deployment = () => state.about?.deployments.find((one) => one.id === $("#deployment").value.replace(/^deployment /, "")
  && $("#deployment").value.startsWith("deployment "));

async function start() {
  state.about = await (await ask("deployments")).json();
  const { deployments, models, routines, languages } = state.about;
  const pictures = deployments.filter((one) => one.takes_images || !one.available);
  $("#deployment").replaceChildren(
    ...pictures.map((one) => option(`deployment ${one.id}`, `${one.id} (pictures)`)), ...models.map((one) => option(`model ${one.name}`, one.name)));
  const first = pictures.find((one) => one.default) ?? pictures[0];
  if (first) $("#deployment").value = `deployment ${first.id}`;
  $("#connect-deployment").replaceChildren(...pictures.map((one) => option(one.id)));
  $("#add-routine").replaceChildren(option("", "add one…"), ...routines.map((one) => option(one.name)));
  for (const select of ["#copy-language", "#connect-language"]) $(select).replaceChildren(...languages.map((one) => option(one.id, one.name)));
  showTarget();
}

/** Show the inputs that fit what was chosen: a picture for a deployment, a body for a model. */
function showTarget() {
  const one = deployment();
  $("#for-images").hidden = $("#copy").hidden = $("#picture").hidden = !one;
  $("#for-tensors").hidden = Boolean(one);
  Object.assign(state, { picture: null, routines: [] });
  $("#image").removeAttribute("src");
  $("#about").textContent = "";
  newest();
  clearAnswer();
  showRoutines();
  if (one) showDeployment(one);
  else $("#body").value = JSON.stringify(state.about.models.find((model) => `model ${model.name}` === $("#deployment").value)?.body ?? { inputs: [] });
}

function clearAnswer() {
  state.answer = null;
  for (const part of ["#overlay", "#chart", "#json", "#shown", "#timing", "#body-timing"]) $(part).replaceChildren();
}

function showDeployment(one) {
  const names = Object.values(one.classes).map((each) => each.name).join(", ");
  const chain = one.routines.map((routine) => routine.name).join(", ");
  $("#about").textContent = one.available && one.takes_images
    ? [`model ${one.model}`, names && `sees ${names}`, chain && `always runs ${chain}`, one.version_tag].filter(Boolean).join(" · ") : one.reason ?? "not available";
  $("#samples").replaceChildren();
  for (const name of one.samples) attempt(() => showSample(one, name));
}

async function showSample(one, name) {
  const picture = make("img", { alt: `Sample ${name}` });
  const button = make("button", { type: "button", className: "sample", title: name }, picture);
  $("#samples").append(button);
  const blob = ask(`${encodeURIComponent(one.id)}/samples/${encodeURIComponent(name)}`).then((response) => response.blob());
  button.addEventListener("click", () => attempt(async () => take(await blob)));
  picture.src = URL.createObjectURL(await blob);
}

/** Take a picture, show it as the server will see it, and ask what is in it. */
async function take(blob) {
  if (!blob?.type.startsWith("image/")) throw new Error("This is no picture.");
  state.picture = blob;
  URL.revokeObjectURL($("#image").src);
  $("#image").src = URL.createObjectURL(blob);
  clearAnswer();
  await send();
}

async function toBase64(blob) {
  const address = await new Promise((done) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.readAsDataURL(blob);
  });
  return address.slice(address.indexOf(",") + 1);
}

async function send() {
  if (!state.picture) throw new Error("Choose a picture first.");
  const path = `${encodeURIComponent(deployment().id)}/predict`;
  await sendAnd($("#timing"), async () => {
    const body = JSON.stringify({ image_type: "base64", data: await toBase64(state.picture), routines: chain() });
    return ask(path, { method: "POST", body, headers: { "Content-Type": "application/json" } });
  }, showAnswer);
}

/** Ask, say how long it took and show the answer in place of the last one - unless something else was asked since. */
async function sendAnd(timing, question, showIt) {
  const isNewest = newest();
  timing.textContent = "Sending…";
  const began = performance.now();
  try {
    const response = await question();
    const answer = await response.json();
    if (!isNewest()) return;
    state.answer = answer;
    timing.textContent = describeTiming(response, performance.now() - began);
    showIt();
  } catch (error) {
    if (!isNewest()) return;
    clearAnswer();
    throw error;
  }
}

function describeTiming(response, milliseconds) {
  const id = response.headers.get("X-Request-Id");
  const parts = [...(response.headers.get("Server-Timing") ?? "").matchAll(/([\w-]+)[^,]*?;\s*dur=([\d.]+)/g)].map(([, name, took]) => `${name} ${Number(took).toFixed(1)} ms`);
  return [`${milliseconds.toFixed(0)} ms`, ...parts, ...(id ? [`request ${id}`] : [])].join(" · ");
}

/** Show what the slider lets through, in the picture and as JSON; the server is not asked. */
function showAnswer() {
  const least = Number($("#confidence").value);
  $("#confidence-value").textContent = least.toFixed(2);
  if (!state.answer) return;
  const { predictions, histogram, ...rest } = state.answer;
  const shown = predictions?.filter((one) => one.confidence >= least);
  const chart = histogram && { ...histogram, image: histogram.image ? "…" : undefined };
  $("#json").textContent = pretty({ ...(shown && { predictions: shown }), ...(chart && { histogram: chart }), ...rest });
  $("#overlay").replaceChildren(...(shown ?? []).filter((one) => one.bound).reverse().map(drawPrediction));
  $("#shown").textContent = shown ? `${shown.length} of ${predictions.length} shown` : "";
  const rows = histogram?.classes ?? rest.avgPerClass ?? (shown && !shown.some((one) => one.bound) ? Object.fromEntries(shown.slice(0, 10).map((one) => [one.tag.name, one.confidence])) : null);
  showChart(histogram?.counts ? byRange(histogram) : rows);
}

function drawPrediction({ bound, contour, tag, confidence }) {
  const colour = COLOURS[Math.abs(tag.id) % COLOURS.length];
  const width = $("#image").naturalWidth || 1, height = $("#image").naturalHeight || 1;
  $("#overlay").setAttribute("viewBox", `0 0 ${width} ${height}`);
  const points = (ring) => ring.map(([x, y]) => `${x * width},${y * height}`).join(" ");
  const [[left, top], , [right, bottom]] = bound;
  const group = draw("g", { class: "box" });
  if (contour) group.append(draw("polygon", { points: points(contour), fill: colour, stroke: colour }));
  group.append(draw("rect", { x: left * width, y: top * height, width: (right - left) * width, height: (bottom - top) * height, stroke: colour }));
  const size = Math.max(width, height) / 32;
  group.append(draw("text", { x: left * width + size * 0.2, y: Math.max(top * height - size * 0.3, size), "font-size": size }, `${tag.name} ${confidence.toFixed(2)}`));
  return group;
}

function byRange({ ranges, counts }) {
  return Object.fromEntries(Object.entries(counts).flatMap(([name, numbers]) => numbers.map((count, n) => [`${name} ≤ ${ranges[n]}`, count])));
}

function showChart(rows) {
  const most = Math.max(1e-9, ...Object.values(rows ?? {}));
  $("#chart").replaceChildren(...Object.entries(rows ?? {}).map(([name, count]) => make("div", { className: "chart-row" },
    make("span", { textContent: name }), make("meter", { value: count, max: most, ariaLabel: name }), make("span", { textContent: Number.isInteger(count) ? count : count.toFixed(3) }))));
}

// Routines: fields made from their declaration, in an order that can be changed.

function addRoutine(name) {
  const declared = state.about.routines.find((one) => one.name === name);
  const values = Object.fromEntries(declared.arguments.map((one) => [one.name, one.default ?? (one.required && one.kind === "number" ? 0.5 : null)]));
  state.routines.push({ declared, values });
  showRoutines();
}

function showRoutines() {
  $("#routines").replaceChildren(...state.routines.map(routineRow));
  showCodeSoon();
}

function routineRow(routine, index) {
  const move = (step) => {
    const [own] = state.routines.splice(index, 1);
    if (step !== null) state.routines.splice(Math.max(0, index + step), 0, own);
    showRoutines();
    focusRoutine(step === null ? index : state.routines.indexOf(own), step);
  };
  const button = (text, label, step) => make("button", { type: "button", textContent: text, ariaLabel: `${label} ${routine.declared.name}`, onclick: () => move(step) });
  return make("li", { className: "routine", title: routine.declared.doc }, make("strong", { textContent: routine.declared.name }),
    ...routine.declared.arguments.map((one) => argumentField(routine, one)), button("↑", "Earlier:", -1), button("↓", "Later:", 1), button("✕", "Remove", null));
}

/** The list was drawn anew: keep the keyboard at the button that was pressed, or nearby where its routine is gone. */
function focusRoutine(index, step) {
  const rows = $("#routines").children;
  const buttons = rows[Math.min(index, rows.length - 1)]?.querySelectorAll("button");
  (buttons?.[{ "-1": 0, 1: 1 }[step] ?? 2] ?? $("#add-routine")).focus();
}

function argumentField(routine, { name, kind, minimum, maximum, doc }) {
  const number = kind === "number" || kind === "integer";
  const field = make("input", { type: number ? "number" : "text", value: routine.values[name] ?? "", placeholder: doc ?? "", title: doc ?? "" });
  if (number) Object.assign(field, { step: kind === "integer" ? 1 : "any", min: minimum ?? "", max: maximum ?? "" });
  field.addEventListener("input", () => {
    routine.values[name] = readArgument(kind, field.value);
    showCodeSoon();
  });
  return make("label", {}, make("small", { textContent: `${name} ` }), field);
}

/** A field's text as the argument's value; lists are separated by commas. What is no number goes as text: the server says so. */
function readArgument(kind, text) {
  if (text.trim() === "") return null;
  if (kind === "number" || kind === "integer") return Number(text);
  if (kind === "boolean") return { true: true, false: false }[text.trim().toLowerCase()] ?? text;
  if (kind === "map") return readMap(text);
  const parts = text.split(",").map((part) => part.trim());
  return kind === "strings" ? parts : kind === "numbers" ? parts.map((part) => (part === "" || Number.isNaN(Number(part)) ? part : Number(part))) : text;
}

/** `cat: 0.5, dog: 0.7` as an object of numbers. */
function readMap(text) {
  const pairs = text.split(",").map((part) => [part.slice(0, part.lastIndexOf(":")).trim(), part.slice(part.lastIndexOf(":") + 1).trim()]);
  return Object.fromEntries(pairs.map(([key, value]) => [key, value === "" || Number.isNaN(Number(value)) ? value : Number(value)]));
}

function chain() {
  return state.routines.map(({ declared, values }) => ({
    name: declared.name, arguments: Object.fromEntries(Object.entries(values).filter(([, value]) => value !== null)) }));
}

async function sendBody() {
  const name = $("#deployment").value.replace(/^model /, "");
  const question = () => ask(`v1/models/${encodeURIComponent(name)}:predict`, { method: "POST", body: $("#body").value });
  await sendAnd($("#body-timing"), question, () => ($("#json").textContent = pretty(state.answer)));
}

// --- code ---------------------------------------------------------------------------------------------------

async function clientCode(id, language, routines) {
  const query = new URLSearchParams({ routines: JSON.stringify(routines) });
  return (await ask(`${encodeURIComponent(id)}/client/${language}?${query}`)).text();
}

let codeTimer = 0, codesAsked = 0;

/** Show the code of this call once the user pauses, rather than at each letter typed. */
function showCodeSoon() {
  clearTimeout(codeTimer);
  codeTimer = setTimeout(() => showCode().catch((error) => ($("#copy-code").textContent = error.message)), 200);
}

async function showCode() {
  const one = deployment(), own = ++codesAsked;
  if (!one || !$("#copy-language").value) return;
  const code = await clientCode(one.id, $("#copy-language").value, chain());
  if (own === codesAsked) $("#copy-code").textContent = code;
}

async function showConnect() {
  const id = $("#connect-deployment").value;
  if (!id) throw new Error("There is no deployment that takes pictures.");
  $("#connect-url").textContent = new URL(`${encodeURIComponent(id)}/predict`, BASE);
  $("#connect-code").textContent = await clientCode(id, $("#connect-language").value, []);
}

// --- watch --------------------------------------------------------------------------------------------------

let watching = 0;

/** Show the numbers now and every two seconds, while this part of the page is looked at. */
async function watch() {
  clearTimeout(watching);
  if ($("#panel-watch").hidden || document.hidden || $("#key-dialog").open) return;
  await attempt(async () => {
    const response = await ask("stats");
    // The server's clock, since a phone's may be off.
    showStats(await response.json(), Date.parse(response.headers.get("Date")) || Date.now());
  });
  clearTimeout(watching);
  watching = setTimeout(watch, 2000);
}

function showStats(stats, now) {
  listGroups(Object.keys(stats.groups ?? {}));
  const group = stats.groups?.[$("#group").value] ?? stats.total ?? {};
  drawGraph(stats.minutes ?? [], now);
  showNumbers(stats, group);
  const rows = { "in all": group.latency_ms, ...group.parts_ms };
  $("#latency").replaceChildren(...Object.entries(rows).map(([name, found]) => row(name, ...["p50", "p90", "p99"].map((q) => show(found?.[q], " ms", 2)))));
  $("#batches").textContent = Object.entries(group.batch_sizes ?? {}).map(([rows, count]) => `${rows} rows: ${count}`).join(", ") || "-";
  $("#errors").replaceChildren(...(stats.last_errors ?? []).map((one) => row(
    new Date(one.time * 1000).toLocaleTimeString(), one.status, `${one.method} ${one.path}`, one.error, one.request_id)));
}

/** Offer the groups. The list is left alone while it stays the same, since a new one closes under the user's hand. */
function listGroups(names) {
  const listed = [...$("#group").options].slice(1).map((one) => one.value);
  if (names.join("\n") === listed.join("\n")) return;
  const chosen = $("#group").value;
  $("#group").replaceChildren(option("", "everything"), ...names.map((name) => option(name)));
  $("#group").value = names.includes(chosen) ? chosen : "";
}

function showNumbers(stats, group) {
  const share = (count) => (group.requests && count != null ? `${count} (${(100 * count / group.requests).toFixed(1)} %)` : show(count));
  const gpus = stats.gpus ?? [];
  const tiles = {
    "Requests": show(group.requests), "Requests a second": show(group.requests_per_second, "", 2), "Errors 4xx": share(group.errors_4xx),
    "Errors 5xx": share(group.errors_5xx), "At once now": show(stats.in_flight), "At once at peak": show(stats.peak_in_flight), "Up for": duration(stats.uptime_seconds),
    "CPU": show(stats.process?.cpu_percent, " %"), "Memory": show(stats.process?.memory_bytes / 2 ** 20, " MiB"),
    "GPU": gpus.map((gpu) => `${gpu.name} ${show(gpu.memory_used_bytes / 2 ** 20, " MiB")} ${show(gpu.utilisation_percent, " %")}`).join(", ") || "none" };
  $("#numbers").replaceChildren(...Object.entries(tiles).map(([name, value]) => make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value }))));
}

function duration(seconds) {
  if (seconds == null) return "-";
  const hours = Math.floor(seconds / 3600), minutes = Math.floor(seconds / 60) % 60;
  return hours ? `${hours} h ${minutes} min` : minutes ? `${minutes} min` : `${Math.floor(seconds)} s`;
}

/** Bars of the last sixty minutes; the newest on the right. */
function drawGraph(minutes, now) {
  const width = 600, height = 160, last = Math.floor(now / 60000) * 60;
  const hour = minutes.filter((one) => last - one.time < 3600);
  const most = Math.max(1, ...hour.map((one) => one.requests));
  const bars = hour.flatMap((one) => {
    const x = width - 10 * (1 + (last - one.time) / 60), scale = (height - 6) / most;
    const heights = [["ok", one.requests - one.errors_4xx - one.errors_5xx], ["bad4", one.errors_4xx], ["bad5", one.errors_5xx]];
    let base = height;
    return heights.filter(([, count]) => count > 0).map(([kind, count]) => {
      base -= count * scale;
      return draw("rect", { class: kind, x, y: base, width: 8, height: count * scale });
    });
  });
  $("#graph").setAttribute("viewBox", `0 0 ${width} ${height}`);
  $("#graph").setAttribute("preserveAspectRatio", "none");
  $("#graph").replaceChildren(...bars);
  $("#graph-most").textContent = `at most ${most} a minute`;
  const current = hour.find((one) => one.time === last)?.requests ?? 0;
  $("#graph").setAttribute("aria-label", `Requests a minute over the last hour: at most ${most}, this minute ${current}`);
}

function row(...cells) {
  return make("tr", {}, ...cells.map((cell) => make("td", { textContent: cell })));
}

// --- models -------------------------------------------------------------------------------------------------

async function showModels() {
  const [{ models }, { devices, residency }] = await Promise.all([ask("v1/models"), ask("stats")].map(async (answer) => (await answer).json()));
  const rows = models.flatMap(({ name, model_version_status: versions }) => versions.map((one) => modelRow(name, one, devices ?? {}, residency?.on_demand ?? {})));
  $("#models").replaceChildren(...rows);
}

function modelRow(name, { version, state: now, status }, devices, onDemand) {
  const { resident, why } = onDemand[`${name}/${version}`] ?? {};
  const residency = why && `${resident ? "in memory" : "not in memory"}, ${why}`;
  const signature = make("td", { className: "signature" });
  if (now === "AVAILABLE") showSignatures(name, version, signature).catch((error) => (signature.textContent = error.message));
  return make("tr", {}, make("th", { scope: "row", textContent: name }), make("td", { textContent: version }),
    make("td", { className: `state-${now}`, textContent: [now, status?.error_message, residency].filter(Boolean).join(": ") }),
    make("td", { textContent: devices[`${name}/${version}`] || "-" }), signature);
}

/** The default signature, and the others folded away. */
async function showSignatures(name, version, cell) {
  const { metadata } = await (await ask(`v1/models/${encodeURIComponent(name)}/versions/${version}/metadata`)).json();
  const { serving_default: usual, ...others } = metadata.signature_def.signature_def;
  delete others.__saved_model_init_op;
  const rest = Object.entries(others).map(([key, signature]) => [key, ...describeSignature(signature)].join("\n"));
  cell.replaceChildren(usual ? describeSignature(usual).join("\n") : "no serving_default");
  if (rest.length) cell.append(make("details", {}, make("summary", { textContent: `${rest.length} more` }), rest.join("\n\n")));
}

function describeSignature({ inputs, outputs }) {
  // An axis of any length is -1 on the wire.
  const shape = (tensor) => (tensor.tensor_shape?.unknown_rank ? "[…]" : `[${(tensor.tensor_shape?.dim ?? []).map((dim) => (Number(dim.size) < 0 ? "?" : dim.size)).join(", ")}]`);
  const list = (mark, tensors) => Object.entries(tensors ?? {}).map(([key, tensor]) => `${mark} ${key}: ${tensor.dtype.replace("DT_", "").toLowerCase()} ${shape(tensor)}`);
  return [...list("→", inputs), ...list("←", outputs)];
}

async function reload() {
  $("#reload-outcome").textContent = "Reloading…";
  try {
    const response = await ask("v1/config/reload", { method: "POST" });
    $("#reload-outcome").textContent = response.status === 201 ? "Something was read or loaded anew." : "Nothing to do: all is as it should be.";
  } catch (error) {
    $("#reload-outcome").textContent = error.message;
  }
  await showModels();
}

// --- what the user does -------------------------------------------------------------------------------------

$("#key-form").addEventListener("submit", () => {
  sessionStorage.setItem("serving-key", $("#key-input").value.trim());
  $("#key-input").value = "";
  $("#key-error").textContent = "";
  attempt(start);
});
// What was shown when the key ran out goes on with the new one.
$("#key-dialog").addEventListener("close", () => selectTab($("[role=tab][aria-selected=true]")));
$("#key-dialog").addEventListener("cancel", (event) => event.preventDefault());
$("#forget").addEventListener("click", () => { sessionStorage.removeItem("serving-key"); askForKey(); });
$("#deployment").addEventListener("change", showTarget);
$("#confidence").addEventListener("input", showAnswer);
$("#image").addEventListener("load", showAnswer);
$("#send").addEventListener("click", () => attempt(send));
$("#send-body").addEventListener("click", () => attempt(sendBody));
for (const input of ["#file-input", "#camera-input"]) $(input).addEventListener("change", (event) => {
  const file = event.target.files[0];
  event.target.value = ""; // so that the same file can be chosen again
  if (file) attempt(() => take(file));
});
$("#add-routine").addEventListener("change", (event) => {
  if (event.target.value) addRoutine(event.target.value);
  event.target.value = "";
});
$("#copy-language").addEventListener("change", showCodeSoon);
$("#copy-button").addEventListener("click", (event) => attempt(() => copyText($("#copy-code"), event.target)));
$("#connect-copy").addEventListener("click", (event) => attempt(() => copyText($("#connect-code"), event.target)));
for (const select of ["#connect-deployment", "#connect-language"]) $(select).addEventListener("change", () => attempt(showConnect));
$("#group").addEventListener("change", watch);
$("#reload").addEventListener("click", () => attempt(reload));
document.addEventListener("visibilitychange", watch);
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file && deployment()) attempt(() => take(file));
});
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    $("#drop").classList.toggle("over", name === "dragover");
    if (name === "drop" && event.dataTransfer.files.length && deployment()) attempt(() => take(event.dataTransfer.files[0]));
  });
}

if (sessionStorage.getItem("serving-key")) attempt(start);
else askForKey();
