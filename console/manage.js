// Manage: deployments, keys, models, uploads and the config file, for a key marked admin. Each change says beforehand what it would be.

import {askJson, ask, catalogue, path, refresh} from "./api.js";
import {area, button, dropZone, make, pretty, select, status, table} from "./dom.js";

const JSON_HEAD = {"Content-Type": "application/json"};
const DEPLOYMENT = [["name"], ["model"], ["version", "number"], ["label_map"], ["threshold", "number"], ["version_tag"], ["routines", "json"], ["instances", "number"],
	["resource_type"], ["number_of_gpus", "number"], ["region"], ["upload_groups", "json"], ["evaluation_threshold", "number"], ["evaluation_strategy"]];

export async function show(root) {
	const said = status("p"), history = await askJson("v1/config/history");
	const parts = make("div");
	root.replaceChildren(history.writable ? "" : make("p.warning", `Nothing can be changed here: ${history.reason}`), said, parts);
	const page = {said, history, again: () => show(root)};
	parts.append(deployments(page), await keys(page), models(page), upload(page), await file(page));
	return null;
}

/** Ask for a change; says what came of it, and draws all anew where something did. */
async function change(page, url, method, body, headers = {}) {
	page.said.className = "soft";
	page.said.textContent = "…";
	try {
		const answer = await (await ask(url, {method, headers: {...JSON_HEAD, ...headers}, body: body === undefined ? undefined : typeof body === "string" ? body : JSON.stringify(body)})).json();
		const changes = (answer.changes ?? []).map((one) => `${one.path}: ${short(one.old)} → ${short(one.new)}`);
		const text = changes.length ? `${answer.written ? "Changed" : "Would change"}: ${changes.join("; ")}` : answer.written === false ? "Nothing would change." : "Done.";
		if (answer.written !== false) {
			await refresh();
			await page.again();
		}
		document.querySelector("#main [role=status]").textContent = text;
		return answer;
	} catch (error) {
		page.said.className = "error";
		page.said.textContent = error.message;
		return null;
	}
}

const short = (value) => (value === undefined ? "nothing" : JSON.stringify(value).slice(0, 80));

const part = (title, ...content) => make("section.card", {"aria-label": title}, make("h2", title), ...content);

/** Fields for an object; `read()` has those that are not empty. */
function form(fields, value = {}) {
	const inputs = fields.map(([name, kind]) => ({name, kind, input: make("input", {type: kind === "number" ? "number" : "text", step: "any",
		value: value[name] == null ? "" : kind === "json" ? JSON.stringify(value[name]) : value[name]})}));
	const element = make("div.fields", inputs.map(({name, input}) => make("label", name.replaceAll("_", " "), input)));
	const read = () => Object.fromEntries(inputs.map(({name, kind, input}) => [name, input.value === "" ? null : kind === "number" ? Number(input.value) : kind === "json" ? JSON.parse(input.value) : input.value]));
	return {element, read};
}

function deployments(page) {
	const place = make("div"), id = make("input", {placeholder: "new deployment", "aria-label": "Id of a new deployment"});
	const edit = async (name, isNew) => {
		const now = isNew ? {model: catalogue.models[0]?.name} : await askJson(`deployments/${path(name)}`), fields = form(DEPLOYMENT, now);
		const typed = make("input", {placeholder: now.name ?? name, "aria-label": "Type its name to delete it"});
		const given = () => Object.fromEntries(Object.entries(fields.read()).filter(([key, value]) => JSON.stringify(value) !== JSON.stringify(now[key] ?? null)));
		const send = (query) => change(page, `deployments/${path(name)}${query}`, isNew ? "PUT" : "PATCH", given());
		place.replaceChildren(make("h3", name), fields.element, make("div.bar", button("What would change", () => send("?dry_run=1")), button("Save", () => send(""), {className: "main"}),
			...(isNew ? [] : [typed, button("Delete", () => change(page, `deployments/${path(name)}`, "DELETE", {name: typed.value})), button("Statistics", async () => stats.replaceChildren(make("pre", pretty(await askJson(`deployments/${path(name)}/statistics`)))))])));
		const stats = make("div");
		place.append(stats);
	};
	return part("Deployments", make("div.bar", catalogue.deployments.map((one) => button(one.id, () => edit(one.id))), id, button("Create", () => id.value && edit(id.value, true))), place);
}

async function keys(page) {
	const {keys: all} = await askJson("v1/keys"), made = make("p", {role: "status"});
	const fields = form([["name"], ["deployments", "json"], ["quota", "json"], ["expires"], ["admin", "json"]]);
	const create = async () => {
		const given = Object.fromEntries(Object.entries(fields.read()).filter(([, value]) => value !== null)), answer = await change(page, "v1/keys", "POST", given);
		if (answer?.key) document.querySelector("#made-key").textContent = `The key of ${given.name}, shown this once: ${answer.key}`;
	};
	made.id = "made-key";
	const rows = all.map((one) => [one.name, one.month_calls ?? "", one.disabled ? "disabled" : one.admin ? "admin" : "", make("div.bar",
		button(one.disabled ? "Enable" : "Disable", () => change(page, `v1/keys/${path(one.name)}`, "PATCH", {disabled: !one.disabled})), button("Delete", () => change(page, `v1/keys/${path(one.name)}`, "DELETE")))]);
	return part("Keys", table(["name", "calls this month", "state", ""], rows, {label: "Keys"}), make("h3", "A new key"), fields.element, make("div.bar", button("Create the key", create)), made);
}

function models(page) {
	let name = catalogue.models[0]?.name;
	const fields = form([["load"], ["pinned", "json"], ["instances", "number"], ["target_device"]]);
	const given = () => Object.fromEntries(Object.entries(fields.read()).filter(([, value]) => value !== null));
	return part("Models", select("Model", catalogue.models.map((one) => one.name), (value) => (name = value)), fields.element, make("div.bar", button("Save the model", () => change(page, `v1/models/${path(name)}`, "PATCH", given()))));
}

function upload(page) {
	const name = make("input", {"aria-label": "Name of the model", placeholder: "model"}), chosen = make("span.soft");
	const send = async ([given]) => {
		chosen.textContent = `${given.name}…`;
		await change(page, `v1/models/${path(name.value || given.name.replace(/\..*$/, ""))}/versions`, "POST", given, {"Content-Type": "application/octet-stream"});
		chosen.textContent = "";
	};
	return part("Upload", make("p.soft", "A SavedModel as .zip or .tar, or a .keras file, becomes the next version."), dropZone("Choose a file", send, {extra: [name, chosen]}));
}

async function file(page) {
	const response = await ask("v1/config/file"), tag = response.headers.get("ETag"), text = area({rows: 18, value: JSON.stringify(await response.json(), null, 2), "aria-label": "The config file"});
	const put = (query) => change(page, `v1/config/file${query}`, "PUT", text.value, {"If-Match": tag});
		return part("Config file", text, make("div.bar", button("Check", () => put("?dry_run=1")), button("Save the file", () => put(""), {className: "main"}),
		button("Roll back", () => change(page, "v1/config/rollback", "POST", {}), {disabled: !page.history.kept.length})));
}
