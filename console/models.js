// Models: cards of all that is served; load and free; a reload's changes. `#models/shapes`.

import {KINDS, ask, askJson, catalogue, nothing, onCatalogue, path, refresh} from "./api.js";
import {attempt} from "./app.js";
import {$, bar, button, bytes, dot, duration, fill, fits, link, make, search, table} from "./dom.js";
import {morph, poll} from "./live.js";
import {readSignatures, tell} from "./tensors.js";

let counts = {}, ahead = 0; // /stats of each version and handler; seconds that the server's clock is ahead of ours
const busy = new Map(); // addresses of versions -> what is being done to them

export async function show(root, [only]) {
	const wanted = search("Search models, pipelines and handlers", () => draw(), "Search…", {id: "models-search", hidden: Boolean(only)});
	const cards = make("div"), plan = make("section.card", {"aria-live": "polite", label: "Reload", hidden: true});
	const draw = () => morph(cards, drawAll(only, wanted.value));
	fill(root, bar(wanted, only && link("#models", "All models"),
		!catalogue.key.only && button("Reload…", () => attempt(() => preview(plan)), {id: "reload"})), plan, cards);
	let turn = 0;
	const read = async () => {
		try {
			if (turn++ % 6 === 5) await refresh();
			await readCounts();
		} catch (error) {
			if (error.status === 401) return false; // wrong keys are counted
		}
		draw();
	};
	draw();
	const ends = [onCatalogue(draw), poll(read, () => 3)];
	return () => ends.forEach((end) => end());
}

async function readCounts() {
	const response = await ask("stats"), {versions, groups} = await response.json();
	counts = {...groups, ...versions};
	ahead = (new Date(response.headers.get("Date") ?? Date.now()) - Date.now()) / 1000;
}

function drawAll(only, sought) {
	const wanted = ({name}) => (only ? name === only : fits(name, sought));
	const parts = KINDS.filter(({id}) => id !== "pictures").flatMap(({id, title, list}) => {
		const fit = list().filter(wanted).map((one) => (id === "handlers" ? handlerCard : modelCard)(one, id, Boolean(only)));
		return fit.length ? [make("h2", {"data-key": title}, `${title} (${fit.length})`), make("div.cards", {"data-key": `of ${title}`}, fit)] : [];
	});
	return make("div.part", parts.length ? parts : make("p.empty", nothing(only || sought)));
}

const facts = (pairs) => make("dl", pairs.filter(([, value]) => value).flatMap(([name, value]) => [make("dt", name), make("dd", value)]));

const card = (one, kind, ...children) => make("section", {className: `card${one.state === "failed" ? " failed" : ""}`, "data-key": `${kind} ${one.name}`, label: one.name},
	make("h3", dot(one.state), " ", link(`#models/${path(one.name)}`, one.name), make("span.soft", ` ${one.state === "empty" ? "no version" : one.state}`)),
	one.reason && make("p.error", one.reason), children, one.state === "ready" && make("p", link(`#try/${kind}/${path(one.name)}`, "Try it")));

function modelCard(one, kind, open) {
	const states = one.versions ?? [], used = catalogue.deployments.filter(({model}) => model === one.name);
	return card(one, kind, facts([["Deployments", used.length && make("span", used.flatMap(({id}, at) => [at > 0 && ", ", link(`#try/pictures/${path(id)}`, id)]))],
			["Nodes", one.nodes?.map(({name}) => name).join(", ")]]),
		states.filter(({version}) => version !== "0").map((state) => versionPart(one, state)),
		kind === "pipelines" && calls(`${one.name}/1`, []), one.state === "ready" && signature(one, states, open));
}

const calls = (name, others, about = counts[name]) =>
	about && facts([...others, ["Calls", (about.calls ?? about.requests).toLocaleString()], ["Last used", about.last_used == null ? "not yet" : `${duration(Math.max(0, Date.now() / 1000 + ahead - about.last_used))} ago`]]);

function versionPart(model, {version, state, status}) {
	const labels = Object.entries(model.labels).filter(([, number]) => String(number) === version).map(([label]) => label);
	const about = counts[`${model.name}/${version}`], demand = about?.on_demand;
	const memory = about?.memory_bytes != null ? bytes(about.memory_bytes) : about && (!demand || demand.resident) && `not measured; its files have ${bytes(about.file_bytes)}`;
	const where = `v1/models/${path(model.name)}/versions/${version}`, verb = demand?.resident ? "Free" : "Load";
	return make("div", {"data-key": `version ${version}`},
		make("p", make("strong", `Version ${version}`), labels.flatMap((label) => [" ", make("span.tag", label)]), make("span.soft", ` ${status.error_message ? "failed" : state}`)),
		status.error_message !== model.reason && status.error_message && make("p.error", status.error_message),
		calls(`${model.name}/${version}`, [["On demand", demand && `${demand.resident ? "in memory" : "not in memory"}: ${demand.why}${demand.pinned ? "; pinned" : ""}`], ["Device", about?.device],
			["Load time", about?.load_seconds && `${about.load_seconds.toFixed(2)} s`], ["Memory", memory]]),
		demand && make("p", button(verb, () => act(where, verb), {id: where, label: `${verb} version ${version} of ${model.name}`, disabled: busy.has(where) || (demand.resident && demand.pinned)}), busy.has(where) && ` ${busy.get(where)}ing…`));
}

async function act(where, verb) {
	const draw = () => $("#models-search")?.oninput();
	busy.set(where, verb);
	draw();
	await attempt(async () => {
		await ask(`${where}/${verb === "Free" ? "unload" : "load"}`, {method: "POST"});
		await readCounts();
	});
	busy.delete(where);
	draw();
	if (document.activeElement === document.body) document.getElementById(where)?.focus();
}

function signature(one, states, open) {
	const numbers = states.filter(({state}) => state === "AVAILABLE").map(({version}) => version);
	const parts = (numbers.length ? numbers : [null]).map((version) => {
		const ontoggle = ({currentTarget: shown}) => shown.open && shown.isConnected && attempt(() => tellSignature(shown.lastChild, `v1/models/${path(one.name)}${version ? `/versions/${version}` : ""}`, `of ${one.name} ${version ?? ""}`));
		return make("details", {"data-key": `signature ${version}`, open, ontoggle}, make("summary", numbers.length > 1 ? `Signature of version ${version}` : "Signature"), make("div", {"data-keep": ""}));
	});
	return make("div", {"data-key": "signatures"}, parts);
}

async function tellSignature(inside, address, whose) {
	const rows = (side, tensors = {}) => Object.entries(tensors).map(([name, tensor]) => [side, name, tell(tensor)]);
	fill(inside, (await readSignatures(address)).map(([name, one]) => [make("p", make("strong", name), make("span.soft", ` ${one.method_name ?? ""}`)),
		table(["Side", "Tensor", "Type"], [...rows("input", one.inputs), ...rows("output", one.outputs)], `Signature ${name} ${whose}`)]));
}

const handlerCard = (one, kind) => card(one, kind, calls(one.path, [["Path", make("code", one.path)], ["Methods", one.methods.join(", ")], ["Envelope", one.envelope]], counts[one.path] ?? {requests: 0}));

async function preview(plan) {
	const close = () => (plan.hidden = true);
	close(); // what an earlier one told
	const found = await askJson("v1/config/reload?dry_run=1", {method: "POST"}), lines = tellPlan(found);
	const changes = lines.length > 0 && make("ul", lines.map((line) => make("li", line)));
	fill(plan, make("h2", "What a reload would change"), changes || make("p", "Nothing would change."),
		found.problems.length > 0 && make("p.error", found.problems.join("\n")),
		bar(button("Reload now", () => attempt(() => reload(plan, changes, close)), {className: "main"}), button("Cancel", close)));
	plan.hidden = false;
	$(".main", plan).focus();
}

const said = (value) => (value == null ? "none" : JSON.stringify(value, (_, one) => one ?? undefined)); // without what is not set
const tellOption = (one) => (typeof one === "string" ? one : `${one.option} ${said(one.from)} → ${said(one.to)}${one.restart ? " (needs a restart)" : ""}`);

function tellPlan(plan) {
	const lines = [], titles = {models: "Model", deployments: "Deployment", pipeline_config_list: "Pipeline", handlers: "Handler", keys: "Key"};
	for (const [section, title] of Object.entries(titles)) {
		for (const how of ["added", "removed"]) for (const name of plan[section][how]) lines.push(`${title} ${name}: ${how}`);
		for (const {name, options} of plan[section].changed) lines.push(`${title} ${name}: ${options.map(tellOption).join(", ")}`);
	}
	const words = {load: "loaded", reload: "loaded anew", unload: "unloaded"};
	for (const one of plan.models.versions) {
		for (const [verb, text] of Object.entries(words)) if (one[verb].length) lines.push(`Model ${one.model}: version${one[verb].length > 1 ? "s" : ""} ${one[verb].join(", ")} ${text}`);
	}
	for (const one of plan.server) lines.push(`server: ${tellOption(one)}`);
	for (const name of [...plan.auth, ...plan.modules, ...plan.others]) lines.push(`${name}: changed`);
	return lines;
}

async function readStates() {
	await refresh();
	return Object.fromEntries(catalogue.models.flatMap(({name, versions: all}) => all.map(({version, state, status}) => [`${name}, version ${version}`, `${state} ${status.error_message}`])));
}

async function reload(plan, changes, close) {
	$(".main", plan).disabled = true;
	const before = await readStates();
	let title = "What the reload changed", told;
	try {
		const {status} = await ask("v1/config/reload", {method: "POST"});
		told = changes || make("p", status === 201 ? "Something was read or loaded anew." : "Nothing had changed.");
	} catch (error) {
		title = "What the reload was asked for";
		told = [make("p.error", {role: "alert"}, error.message), changes];
	}
	const after = await readStates();
	const rows = Object.keys({...before, ...after}).filter((name) => before[name] !== after[name]).map((name) => [name, before[name] ?? "–", after[name] ?? "–"]);
	fill(plan, make("h2", title), told, rows.length > 0 && table(["Version", "Before", "Now"], rows, "What has changed"),
		bar(button("Close", close)));
}
