// Manage: deployments, keys, models, uploads and the config file, for an admin's key. A change can be previewed;
// its result, or why it was refused, is shown in the part that made it.

import {ask, askJson, catalogue, path, refresh} from "./api.js";
import {area, bar, button, bytes, dropZone, duration, fill, make, milliseconds, option, select, show as say, table, textBlock, tiles} from "./dom.js";
import {field} from "./fields.js";
import {morph} from "./live.js";

const some = {min: 1};
const modelNames = () => catalogue.models.map((one) => one.name), deploymentIds = () => catalogue.deployments.map((one) => one.id);
const DEPLOYMENT = () => [["name"], ["model", modelNames()], ["version", "integer"], ["version_label"], ["version_tag"], ["label_map", "json", {placeholder: "a file, or JSON"}], ["threshold", "number"],
	["routines", "json", {placeholder: '[{"name": "NMS"}]'}], ["default", "boolean"], ["instances", "integer", some], ["resource_type", ["AUTO", "CPU", "GPU"]], ["number_of_gpus", "integer"], ["gpu_type"], ["region"],
	["upload_groups"], ["evaluation_threshold", "number"], ["evaluation_strategy", ["entropy", "least_confidence", "margin"]]];
const MODEL = [["load", ["eager", "on_demand"]], ["pinned", "boolean"], ["instances", "integer", some], ["target_device", "json", {placeholder: "AUTO, CPU, GPU, GPU:1"}]];
const KEY = [["name"], ["calls", "integer", some], ["per", ["minute", "hour", "day", "month"]], ["expires", "date"], ["admin", "boolean"]];

let now = {}, updates = []; // the server's state; how each part redraws from it

export async function show(root) {
	if (!catalogue.key.admin) return fill(root, make("p.empty", "Only a key that is marked admin may change what is served, and only if the config has the section `admin`."));
	updates = [];
	await read();
	const {writable, reason} = now.history, parts = Object.entries({Deployments: deployments, Keys: keys, Models: models, Upload: upload, "Config file": configFile}).map(([title, build]) => part(title, build));
	await update();
	return fill(root, writable ? null : make("p.warning", `The config file cannot be changed: ${reason}`), parts);
}

async function read() {
	const [history, {keys}, file] = await Promise.all([askJson("v1/config/history"), askJson("v1/keys"), ask("v1/config/file").catch(() => null)]);
	now = {history, keys, tag: file?.headers.get("ETag"), config: await file?.json()};
}

const update = () => Promise.all(updates.map((draw) => draw()));

async function reread() {
	await refresh();
	await read();
	await update();
}

/** A button that changes the config file; disabled if that is not writable. */
const changing = (text, onclick, properties = {}) => button(text, onclick, {disabled: !now.history.writable, ...properties});

const short = (value, none = "nothing") => (value === undefined ? none : JSON.stringify(value).slice(0, 200));

function tell({changes = [], written, version, model, digest, note, problems = []}) {
	const told = version && make("p", `Version ${version} of ${model} is ${note ? `there; ${note}` : "served"}. ${digest}`);
	return [told, changes.length ? make("p", written ? "Changed:" : "Would change:") : !told && make("p", "Nothing has to change."),
		make("ul", changes.map((one) => make("li", `${one.path}: ${short(one.old)} → ${short(one.new)}`))), problems.length > 0 && make("p.warning", `Problems that were there before: ${problems.join("\n")}`)];
}

function part(title, build) {
	const said = make("div", {role: "status"});
	const tellHere = (...content) => {
		fill(said, ...content);
		said.scrollIntoView({block: "nearest"});
	};
	const attempt = async (work) => {
		tellHere(make("p.soft", "…"));
		try {
			tellHere(await work());
		} catch (error) {
			tellHere(make("p.error", error.message));
		}
	};
	/** Ask for a change, or its preview, with the body `given()`; then call `done(answer)`. */
	const change = (method, url, given, {dry = false, headers, done = () => {}} = {}) => attempt(async () => {
		const body = given?.(), file = body instanceof Blob, sent = file || typeof body === "string" ? body : JSON.stringify(body);
		try {
			const type = file ? "application/octet-stream" : "application/json";
			const answer = await askJson(dry ? `${url}?dry_run=1` : url, {method, headers: {"Content-Type": type, ...headers}, body: sent});
			if (!dry) await reread();
			if (!dry) await done(answer);
			return tell(answer);
		} catch (error) {
			if (error.status === 500) await reread(); // in force, except what failed
			throw error;
		}
	});
	/** A preview, and the button that applies it. */
	const both = (text, work, first = "What would change") => [button(first, () => work(true)), changing(text, () => work(false), {className: "main"})];
	return make("section.card", {label: title}, make("h2", title), build({attempt, change, both}), said);
}

/** A field whose text may be JSON, or the name of a file or the like. */
function jsonField(value, properties) {
	const element = field("string", value && typeof value === "object" ? JSON.stringify(value) : value, properties);
	const read = () => (/^[[{"]/.test(element.value.trim()) ? JSON.parse(element.value) : element.value.trim() ? element.value : null);
	return Object.assign(element, {read});
}

/** A form of `[name, kind, properties]`: `read()` returns what was changed, null for what was emptied. */
function form(fields, now = {}) {
	const inputs = fields.map(([name, kind, properties]) => [name, kind === "json" ? jsonField(now[name], properties) : field(kind, now[name], properties)]), before = inputs.map(([, input]) => input.value);
	const element = make("div.fields", inputs.map(([name, input]) => make("label", name.replaceAll("_", " "), input)));
	const touched = () => inputs.filter(([, input], at) => input.validity.badInput || input.value !== before[at]);
	const read = () => Object.fromEntries(touched().map(([name, input]) => {
		try {
			if (input.validity.badInput) throw new Error("expected a number");
			return [name, input.read()];
		} catch (error) {
			input.focus();
			throw new Error(`${name}: ${error.message}`);
		}
	}));
	return {element, touched, read};
}

/** Offer names; the choice is kept. */
function offer(list, names, value = list.value) {
	fill(list, names.map((name) => option(name, name || "choose…")));
	list.value = names.includes(value) ? value : names[0];
}

function deployments({attempt, change, both}) {
	let id = "", known = false, fields = null;
	const list = make("select", {onchange: () => attempt(() => choose(list.value))}), wanted = make("input", {placeholder: "its id", label: "Id of a new deployment"}), typed = make("input", {label: "Its name, typed to delete it"});
	const title = make("h3"), place = make("div"), stats = make("div"), url = () => `deployments/${path(id)}`;
	const choose = (name) => {
		[id, typed.value, editor.hidden] = [name, "", true]; // it still shows another
		fill(stats);
		return renew();
	};
	/** The form of a configured deployment, or of a new one. */
	const renew = async () => {
		known = deploymentIds().includes(id);
		offer(list, ["", ...deploymentIds()], id);
		const settings = known ? await askJson(url()) : {}, shared = settings.shared_with ?? [];
		fields = form(DEPLOYMENT(), settings);
		fill(place, fields.element, shared.length > 0 && make("p.soft", `Its model, instances and devices are shared with ${shared.join(", ")}.`));
		title.textContent = known ? id : `${id}, a new one`;
		typed.placeholder = settings.name ?? "";
		own.hidden = !known;
		editor.hidden = !id;
	};
	const statistics = async () => {
		const {process, gpus, latency_ms: latency, ...all} = await askJson(`${url()}/statistics`);
		fill(stats, tiles("Statistics", {State: all.state, Uptime: duration(all.uptime_seconds), Requests: all.requests, "A minute": all.requests_per_minute, "Error rate": say(100 * all.error_rate, " %", 1),
			"p50, p99": `${milliseconds(latency?.p50)}, ${milliseconds(latency?.p99)}`, "Requests at once, mean": all.concurrent_requests, "Its model's memory": bytes(all.model_memory_bytes),
			"CPU of the server": say(process.cpu_percent, " %"), "Memory of the server": bytes(process.memory_bytes), ...Object.fromEntries(gpus.map(({name, type = "", memory_used_bytes: used}) => [`${name} ${type}`, bytes(used)]))}));
	};
	const create = () => wanted.value && attempt(() => choose(wanted.value));
	wanted.onkeydown = ({key}) => {
		if (key === "Enter") create();
	};
	const save = (dry) => change(known ? "PATCH" : "PUT", url(), () => fields.read(), {dry, done: () => (known ? renew() : choose(id))});
	const remove = () => change("DELETE", url(), () => ({name: typed.value}), {done: () => choose("")});
	const own = bar(button("Statistics", () => attempt(statistics)), typed, changing("Delete", remove)), editor = make("div", {hidden: true}, title, place, bar(both("Save", save)), own, stats);
	updates.push(() => (fields?.touched().length ? null : renew())); // keeps a form being filled in
	return [bar(make("label", "Which ", list), wanted, button("New", create)), editor];
}

function keys({change}) {
	let fields = null;
	const all = make("div"), place = make("div"), only = make("select", {multiple: true, size: 3}), made = textBlock("The new key");
	const renew = () => {
		fields = form(KEY);
		fields.element.append(make("label", "may call (nothing chosen: everything)", only));
		fill(place, fields.element);
	};
	const given = () => {
		const {calls, per: period, ...key} = fields.read(), chosen = [...only.selectedOptions].map((one) => one.value);
		return {...key, ...(calls || period ? {quota: {calls, period}} : {}), ...(chosen.length ? {deployments: chosen} : {})};
	};
	const done = ({key}) => {
		made.say(key, `${key}\n\nshown this once`); // stays on the page: nobody can get it again
		renew();
	};
	updates.push(() => {
		const ids = [...deploymentIds(), ...catalogue.handlers.map((one) => one.path)];
		if (ids.length !== only.options.length) fill(only, ids.map((one) => option(one)));
		const drawn = make("div", table(["Key", "State", "For", "Quota", "Calls this month", "Change"], now.keys.map((one) => keyRow(one, change)), "All keys", now.keys.map(({name}) => name)));
		drawn.firstChild.id = "keys";
		morph(all, drawn);
	});
	renew();
	return [all, make("h3", "A new key"), place, bar(changing("Create the key", () => change("POST", "v1/keys", given, {done}), {className: "main"})), made];
}

function keyRow({name, disabled, admin, expires, deployments: only, quota, month_calls: calls}, change) {
	const url = `v1/keys/${path(name)}`, turn = disabled ? "Enable" : "Disable", state = [disabled && "disabled", admin && "admin", expires && `until ${expires}`].filter(Boolean).join(", ");
	const remove = ({currentTarget: pressed}) => {
		if (pressed.textContent !== "Delete") return change("DELETE", url);
		pressed.textContent = "Really delete?"; // only a full rollback restores it
		return (pressed.onblur = () => (pressed.textContent = "Delete"));
	};
	return [name, state, only?.join(", ") ?? "everything", quota ? `${quota.used} of ${quota.calls} a ${quota.period}` : "", calls ?? "–",
		bar(changing(turn, () => change("PATCH", url, () => ({disabled: !disabled})), {label: `${turn} ${name}`}), changing("Delete", remove, {title: `Delete ${name}`}))];
}

function models({change, both}) {
	let fields = null;
	const place = make("div"), list = make("select", {onchange: () => renew()});
	/** Empty fields, labelled with the config's value. */
	const renew = () => {
		const has = now.config?.model_config_list.find(({config}) => config.name === list.value)?.config ?? {};
		fields = form(MODEL);
		[...fields.element.children].forEach((label, at) => label.firstChild.after(make("small.soft", ` now ${short(has[MODEL[at][0]], "the default")}`)));
		fill(place, fields.element);
	};
	updates.push(() => {
		offer(list, modelNames());
		if (!fields?.touched().length) renew();
	});
	const save = (dry) => change("PATCH", `v1/models/${path(list.value)}`, () => fields.read(), {dry, done: renew});
	return [bar(make("label", "Which ", list), make("span.soft", "Empty fields are not changed.")), place, bar(both("Save the model", save))];
}

function upload({change}) {
	const given = make("input", {placeholder: "default: the file's name"}), version = field("integer", null, {...some, placeholder: "default: the next"}), numbered = make("label", "Version ", version);
	const kinds = select("Upload as", ["model", "project of handlers"], (kind) => (numbered.hidden = kind !== "model"));
	const send = ([file]) => {
		const name = path(given.value || file.name.replace(/\..*$/, "")), number = version.read();
		if (kinds.lastChild.value !== "model") return change("PUT", `v1/projects/${name}`, () => file);
		return change(number ? "PUT" : "POST", `v1/models/${name}/versions${number ? `/${number}` : ""}`, () => file);
	};
	const about = make("p.soft"), fields = make("div", bar(kinds, make("label", "Name ", given), numbered), dropZone("Choose a file", send));
	updates.push(() => {
		const kind = now.config?.admin?.upload;
		fields.hidden = !kind;
		kinds.hidden = kind !== "code";
		about.textContent = kind ? "A SavedModel as .zip or .tar, or a .keras file, becomes a new version of a model; a name that the config does not have makes a new model." : 'Off: the config has no "admin": {"upload": true}.';
	});
	return [about, fields];
}

function configFile({attempt, change, both}) {
	let tag = "", taken = "";
	const text = area({rows: 18, label: "The config file"}), states = make("select");
	const take = () => {
		tag = now.tag;
		taken = text.value = now.config ? JSON.stringify(now.config, null, 2) : "";
	};
	const put = (dry) => change("PUT", "v1/config/file", () => text.value, {dry, done: take, headers: {"If-Match": tag}});
	const back = (dry) => change("POST", "v1/config/rollback", () => (states.value ? {to: states.value} : {}), {dry, done: take});
	updates.push(() => {
		const kept = now.history.kept.map(({name, until, undone}) => option(name, `${name}: until ${new Date(until).toLocaleString()}${undone ? ", undone" : ""}`));
		fill(states, option("", "before the last change"), kept);
		if (text.value === taken) take(); // an edited text keeps its version: the server refuses outdated ones
	});
	return [make("p.soft", "Secrets are hidden. Leave them as they are shown, and their values are kept."), text, bar(both("Save the file", put, "Check"), button("Read it again", () => attempt(() => reread().then(take)))),
		bar(make("label", "Earlier states ", states), both("Roll back", back))];
}
