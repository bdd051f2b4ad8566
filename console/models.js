// Models: cards of models, pipelines and handlers; loading and freeing; signatures; what a reload would change, and did. `#models/shapes`.

import { ask, askJson, catalogue, path, refresh } from "./api.js";
import { attempt } from "./app.js";
import { button, bytes, details, dot, duration, make, pretty, table } from "./dom.js";
import { morph, poll } from "./live.js";

let versions = {}, ahead = 0; // what /stats says of each version; the server's clock, ahead of ours by so many seconds

export async function show(root, [only]) {
  const search = make("input", { type: "search", id: "models-search", placeholder: "Search…", "aria-label": "Search models, pipelines and handlers", hidden: Boolean(only) });
  const cards = make("div", { id: "models-cards" }), plan = make("section", { id: "reload-plan", className: "card", "aria-live": "polite", "aria-label": "Reload", hidden: true });
  const draw = () => morph(cards, drawAll(only, search.value));
  search.oninput = draw;
  root.replaceChildren(make("div", { className: "bar" }, search, only ? make("a", { href: "#models", textContent: "All models" }) : null,
    button("Reload…", () => attempt(() => preview(plan)), { id: "reload" })), plan, cards);
  let turn = 0;
  const read = async () => {
    try {
      if (turn++ % 6 === 5) await refresh();
      const response = await ask("stats");
      versions = (await response.json()).versions;
      ahead = (new Date(response.headers.get("Date") ?? Date.now()) - Date.now()) / 1000;
    } catch (error) {
      if (error.status === 401) return false; // asking again would ask for the key again
      // else it is gone: the cards stay as they are; Watch tells since when
    }
    draw();
    return true;
  };
  draw();
  return poll(read, () => 3);
}

function drawAll(only, sought) {
  const all = [["Models", catalogue.models, modelCard], ["Pipelines", catalogue.pipelines, modelCard], ["Handlers", catalogue.handlers.map((one) => ({ ...one, name: one.path })), handlerCard]];
  const fits = ({ name }) => (only ? name === only : name.toLowerCase().includes(sought.trim().toLowerCase()));
  const sections = all.map(([title, list, card]) => [title, list.filter(fits), card]).filter(([, list]) => list.length);
  const parts = sections.flatMap(([title, list, card]) => [make("h2", { "data-key": title, textContent: `${title} (${list.length})` }),
    make("div", { className: "cards", "data-key": `of ${title}` }, list.map((one) => card(one, title.toLowerCase(), Boolean(only))))]);
  return make("div", { id: "models-cards" }, parts.length ? parts : make("p", { className: "empty", textContent: only || sought ? "Nothing is called so." : "Nothing is served yet: the config names no models." }));
}

const facts = (pairs) => make("dl", {}, pairs.filter(([, value]) => value != null && value !== "").flatMap(([name, value]) => [make("dt", { textContent: name }), make("dd", {}, value)]));

const card = (one, kind, ...children) => make("section", { className: `card${one.state === "failed" ? " failed" : ""}`, "data-key": `${kind} ${one.name}`, "aria-label": one.name },
  make("h3", {}, dot(one.state), " ", make("a", { href: `#models/${encodeURIComponent(one.name)}`, textContent: one.name }), make("span", { className: "soft", textContent: ` ${one.state === "empty" ? "no version" : one.state}` })),
  one.reason ? make("p", { className: "error", textContent: one.reason }) : null, ...children,
  one.state === "ready" ? make("p", {}, make("a", { href: `#try/${kind}/${encodeURIComponent(one.name)}`, textContent: "Try it" })) : null);

function modelCard(one, kind, open) {
  const states = one.versions ?? [];
  const used = catalogue.deployments.filter(({ model }) => model === one.name);
  return card(one, kind, one.state === "empty" ? make("p", { textContent: "Its folder holds no version." }) : null,
    facts([["Deployments", used.length ? make("span", {}, used.flatMap(({ id }, at) => [at ? ", " : "", make("a", { href: `#try/pictures/${encodeURIComponent(id)}`, textContent: id })])) : null],
      ["Nodes", one.nodes?.map(({ name }) => name).join(", ")]]),
    states.filter(({ version }) => version !== "0").map((state) => versionPart(one, state)),
    kind === "pipelines" ? calls(`${one.name}/1`, []) : null, one.state === "ready" ? signature(one, states, open) : null);
}

const calls = (name, others) => {
  const about = versions[name];
  return about ? facts([...others, ["Calls", about.calls.toLocaleString()], ["Last used", about.last_used == null ? "not yet" : `${duration(Math.max(0, Date.now() / 1000 + ahead - about.last_used))} ago`]]) : null;
};

/** A version: its state and labels, where it runs, what it costs, and buttons where it is on demand. */
function versionPart(model, { version, state, status }) {
  const labels = Object.entries(model.labels).filter(([, number]) => String(number) === version).map(([label]) => label);
  const about = versions[`${model.name}/${version}`], demand = about?.on_demand;
  const memory = about?.memory_bytes != null ? bytes(about.memory_bytes) : about && (!demand || demand.resident) ? `not measured; its files have ${bytes(about.file_bytes)}` : null;
  const where = `v1/models/${path(model.name)}/versions/${version}`;
  const change = (verb) => (event) => act(event.currentTarget, `${where}/${verb}`);
  return make("div", { "data-key": `version ${version}` },
    make("p", {}, make("strong", { textContent: `Version ${version}` }), labels.flatMap((label) => [" ", make("span", { className: "tag", textContent: label })]), make("span", { className: "soft", textContent: ` ${status.error_message ? "failed" : state}` })),
    status.error_message && status.error_message !== model.reason ? make("p", { className: "error", textContent: status.error_message }) : null,
    calls(`${model.name}/${version}`, [["On demand", demand && `${demand.resident ? "in memory" : "not in memory"}: ${demand.why}${demand.pinned ? "; pinned" : ""}`], ["Device", about?.device],
      ["Load time", about?.load_seconds ? `${about.load_seconds.toFixed(2)} s` : null], ["Memory", memory]]),
    demand ? make("p", {}, button(demand.resident ? "Free" : "Load", change(demand.resident ? "unload" : "load"),
      { "aria-label": `${demand.resident ? "Free" : "Load"} version ${version} of ${model.name}`, disabled: demand.resident && demand.pinned })) : null);
}

async function act(pressed, address) {
  pressed.disabled = true;
  await attempt(async () => {
    await ask(address, { method: "POST" });
    versions = (await askJson("stats")).versions;
  });
  pressed.disabled = false;
  pressed.closest("main").querySelector("#models-search").oninput();
}

/** Inputs and outputs of a model, asked for when somebody unfolds them. */
function signature(one, states, open) {
  const numbers = states.filter(({ state }) => state === "AVAILABLE").map(({ version }) => version);
  const parts = (numbers.length ? numbers : [null]).map((version) => {
    const inside = make("div", { "data-keep": "" });
    const part = details(numbers.length > 1 ? `Signature of version ${version}` : "Signature", inside);
    part.dataset.key = `signature ${version}`;
    part.ontoggle = ({ currentTarget: shown }) => {
      if (shown.open) attempt(() => fill(shown.querySelector("[data-keep]"), `v1/models/${path(one.name)}${version ? `/versions/${version}` : ""}/metadata`, `of ${one.name} ${version ?? ""}`));
    };
    if (open) part.open = true;
    return part;
  });
  return make("div", { "data-key": "signatures" }, parts);
}

async function fill(inside, address, whose) {
  const { metadata } = await askJson(address);
  const size = ({ tensor_shape: shape }) => (shape?.unknown_rank ? "any shape" : `[${(shape?.dim ?? []).map((one) => (Number(one.size) < 0 ? "any" : one.size)).join(", ")}]`);
  const rows = (side, tensors) => Object.entries(tensors ?? {}).map(([name, tensor]) => [side, name, tensor.dtype.replace("DT_", "").toLowerCase(), size(tensor)]);
  inside.replaceChildren(...Object.entries(metadata.signature_def.signature_def).filter(([name]) => !name.startsWith("__")).flatMap(([name, one]) => [make("p", {}, make("strong", { textContent: name }), make("span", { className: "soft", textContent: ` ${one.method_name ?? ""}` })),
    table(["Side", "Tensor", "dtype", "Shape"], [...rows("input", one.inputs), ...rows("output", one.outputs)], { label: `Signature ${name} ${whose}` })]));
}

const handlerCard = (one, kind) => card(one, kind, facts([["Path", make("code", { textContent: one.path })], ["Methods", one.methods.join(", ")], ["Envelope", one.envelope]]));

// --- reload --------------------------------------------------------------------------------------

/** What a reload would change, with the button that does it. */
async function preview(plan) {
  const found = await askJson("v1/config/reload?dry_run=1", { method: "POST" });
  const close = () => ((plan.hidden = true), plan.replaceChildren());
  const lines = tellPlan(found);
  plan.replaceChildren(make("h2", { textContent: "What a reload would change" }),
    lines.length ? make("ul", {}, lines.map((line) => make("li", { textContent: line }))) : make("p", { textContent: "Nothing: everything is as the config and the folders have it." }),
    found.problems.length ? make("p", { className: "error", textContent: found.problems.join("\n") }) : "",
    make("div", { className: "bar" }, button("Reload now", () => attempt(() => reload(plan, close)), { className: "main", id: "reload-now" }), button("Cancel", close)));
  plan.hidden = false;
  plan.querySelector(".main").focus();
}

const said = (value) => (value == null ? "none" : typeof value === "object" ? JSON.stringify(value) : String(value));
const tellOption = (one) => (typeof one === "string" ? one : `${one.option} ${said(one.from)} → ${said(one.to)}${one.restart ? " (needs a restart)" : ""}`);

function tellPlan(plan) {
  const lines = [], titles = { models: "Model", deployments: "Deployment", pipeline_config_list: "Pipeline", handlers: "Handler", keys: "Key" };
  for (const [section, title] of Object.entries(titles)) {
    const { added, removed, changed } = plan[section];
    for (const name of added) lines.push(`${title} ${name}: added`);
    for (const name of removed) lines.push(`${title} ${name}: removed`);
    for (const { name, options } of changed) lines.push(`${title} ${name}: ${options.map(tellOption).join(", ")}`);
  }
  const words = { load: "would be loaded", reload: "would be loaded anew", unload: "would be unloaded" };
  for (const one of plan.models.versions) {
    for (const [verb, text] of Object.entries(words)) if (one[verb].length) lines.push(`Model ${one.model}: version${one[verb].length > 1 ? "s" : ""} ${one[verb].join(", ")} ${text}`);
  }
  for (const one of plan.server) lines.push(`server: ${tellOption(one)}`);
  for (const name of [...plan.auth, ...plan.modules]) lines.push(`${name}: changed`);
  return lines;
}

const statesIn = (config) => Object.fromEntries(Object.entries(config).flatMap(([model, { model_version_status: all }]) => all.map((one) => [`${model}, version ${one.version}`, `${one.state}${one.status.error_message ? `: ${one.status.error_message}` : ""}`])));

/** Reload; then what has changed: the states of versions before and after, and the server's own answer. */
async function reload(plan, close) {
  plan.querySelector(".main").disabled = true;
  const before = statesIn(await askJson("v1/config")), tell = [];
  let answer;
  try {
    const response = await ask("v1/config/reload", { method: "POST" });
    answer = pretty(await response.json());
    tell.push(make("p", { textContent: response.status === 201 ? "Reloaded: something was read or loaded anew." : "Everything was as it should be." }));
  } catch (error) {
    tell.push(make("p", { className: "error", textContent: error.message }));
  }
  const after = statesIn(await askJson("v1/config"));
  const rows = [...new Set([...Object.keys(before), ...Object.keys(after)])].filter((name) => before[name] !== after[name]).map((name) => [name, before[name] ?? "–", after[name] ?? "–"]);
  plan.replaceChildren(make("h2", { textContent: "What the reload changed" }), ...tell, rows.length ? table(["Version", "Before", "Now"], rows, { label: "What has changed" }) : make("p", { textContent: "No version has another state than before." }),
    answer ? details("The server's answer", make("pre", { tabIndex: 0, role: "region", "aria-label": "The server's answer", textContent: answer })) : "", make("div", { className: "bar" }, button("Close", close)));
  await refresh();
  document.querySelector("#models-search").oninput();
}
