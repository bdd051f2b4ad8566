// Manage: deployments, keys, models, uploads and the config file, for a key marked admin. What a change would be can be seen
// beforehand; what came of it, or why it was refused, stands in the part where it was asked for.

import {ask, askJson, catalogue, path, refresh} from "./api.js";
import {tellError} from "./call.js";
import {area, bar, button, bytes, dropZone, duration, fill, make, milliseconds, option, select, show as say, table, textBlock, tiles} from "./dom.js";
import {field, form} from "./fields.js";
import {morph} from "./live.js";

const some = {min: 1}, modelNames = () => catalogue.models.map((one) => one.name), deploymentIds = () => catalogue.deployments.map((one) => one.id);
const DEPLOYMENT = () => [["name"], ["model", modelNames()], ["version", "integer"], ["version_label"], ["version_tag"], ["label_map", "json", {placeholder: "a file, or JSON"}], ["threshold", "number"],
	["routines", "json", {placeholder: '[{"name": "NMS"}]'}], ["default", "boolean"], ["instances", "integer", some], ["resource_type", ["AUTO", "CPU", "GPU"]], ["number_of_gpus", "integer"], ["gpu_type"], ["region"],
	["upload_groups"], ["evaluation_threshold", "number"], ["evaluation_strategy", ["entropy", "least_confidence", "margin"]]];
const MODEL = [["load", ["eager", "on_demand"]], ["pinned", "boolean"], ["instances", "integer", some], ["target_device", "json", {placeholder: "AUTO, CPU, GPU, GPU:1"}]];
const KEY = [["name"], ["calls", "integer", some], ["per", ["minute", "hour", "day", "month"]], ["expires", "date"], ["admin", "boolean"]];

export async function show(root) {
	if (!catalogue.key.admin) return fill(root, make("p.empty", "Only a key that is marked admin may change what is served, where the config has the section `admin`."));
	const page = {}, warning = make("p.warning", {role: "status"});
	const parts = Object.entries({Deployments, Keys, Models, Upload, "Config file": ConfigFile}).map(([title, Kind]) => new Kind(page, title));
	page.read = async () => {
		const [history, {keys}, file] = await Promise.all([askJson("v1/config/history"), askJson("v1/keys"), ask("v1/config/file").catch(() => null)]);
		Object.assign(page, {history, keys, tag: file?.headers.get("ETag"), config: await file?.json()});
		warning.textContent = history.writable ? "" : `The config file cannot be changed: ${history.reason}`;
		for (const part of parts) {
			await part.update();
			part.guard();
		}
	};
	await page.read();
	return fill(root, warning, parts.map((part) => part.element));
}

/** A button that changes the config file; nobody can press it where that cannot be written. */
const changing = (text, onclick, properties = {}) => button(text, onclick, {"data-writes": "", ...properties});

const short = (value, none = "nothing") => (value === undefined ? none : JSON.stringify(value).slice(0, 200));

function tell({changes = [], written, version, model, digest, problems = []}) {
	const said = written ? "Changed:" : "Would change:", told = version && make("p", `Version ${version} of ${model} is served. ${digest}`);
	return [told, changes.length ? make("p", said) : !told && make("p", "Nothing has to change."), make("ul", changes.map((one) => make("li", `${one.path}: ${short(one.old)} → ${short(one.new)}`))),
		problems.length > 0 && make("p.warning", `As before: ${problems.join("\n")}`)];
}

class Part {
	constructor(page, title) {
		this.page = page;
		this.said = make("div", {role: "status"});
		this.element = make("section.card", {label: title}, make("h2", title), this.build(), this.said);
	}

	guard() {
		for (const one of this.element.querySelectorAll("[data-writes]")) one.disabled = !this.page.history.writable;
	}

	say(...content) {
		fill(this.said, ...content);
		this.said.scrollIntoView({block: "nearest"});
	}

	async attempt(work) {
		this.say(make("p.soft", "…"));
		try {
			this.say(await work());
		} catch (error) {
			this.say(make("p.error", tellError(error)));
		}
	}

	/** Ask for a change, or what it would be, by what `given()` returns; `done(answer)` follows it. */
	change(method, url, given, {dry = false, headers = {"Content-Type": "application/json"}, done = () => {}} = {}) {
		return this.attempt(async () => {
			const body = given?.(), sent = typeof body === "string" || body instanceof Blob ? body : JSON.stringify(body);
			try {
				const answer = await (await ask(dry ? `${url}?dry_run=1` : url, {method, headers, body: sent})).json();
				if (!dry) await this.reread(() => done(answer));
				return tell(answer);
			} catch (error) {
				if (error.status === 500) await this.reread(); // it is in force, but for what failed
				throw error;
			}
		});
	}

	async reread(done) {
		await refresh();
		await this.page.read();
		await done?.();
	}

	/** What would change, and the button that does it. */
	both(text, change) {
		return [button("What would change", () => change(true)), changing(text, () => change(false), {className: "main"})];
	}
}

/** A part with a form of one of several, whom `names()` has; what somebody is filling in stays when all is drawn anew. */
class Chooser extends Part {
	build(...beside) {
		this.list = make("select", {onchange: () => this.attempt(() => this.choose(this.list.value))});
		this.place = make("div");
		return [bar(make("label", "Which ", this.list), ...beside), this.place];
	}

	update() {
		const {value} = this.list, names = this.names();
		fill(this.list, names.map((name) => option(name, name || "choose…")));
		if (names.includes(value)) this.list.value = value;
		return this.form?.touched().length ? null : this.renew();
	}

	choose() {
		return this.renew();
	}
}

class Deployments extends Chooser {
	build() {
		const id = make("input", {placeholder: "its id", label: "Id of a new deployment"}), create = () => id.value && this.attempt(() => this.choose(id.value));
		id.onkeydown = ({key}) => {
			if (key === "Enter") create();
		};
		this.typed = make("input", {label: "Its name, typed to delete it"});
		this.stats = make("div");
		const save = (dry) => this.change(this.known ? "PATCH" : "PUT", this.url, () => this.form.read(), {dry, done: () => (this.known ? this.renew() : this.choose(this.id))});
		const own = [button("Statistics", () => this.attempt(() => this.showStatistics())), this.typed, changing("Delete", () => this.change("DELETE", this.url, () => ({name: this.typed.value}), {done: () => this.choose("")}))];
		this.editor = make("div", {hidden: true}, this.title = make("h3"), this.fields = make("div"), bar(this.both("Save", save)), this.own = bar(own), this.stats);
		return [super.build(id, button("New", create)), this.editor];
	}

	names() {
		return ["", ...deploymentIds()];
	}

	choose(id) {
		this.id = this.list.value = id;
		this.typed.value = "";
		this.editor.hidden = true; // it is still another's
		fill(this.stats);
		return this.renew();
	}

	/** The form of a deployment as the config has it, or of a new one. */
	async renew() {
		const {id = ""} = this, known = (this.known = deploymentIds().includes(id));
		this.url = `deployments/${path(id)}`;
		if (known) this.list.value = id;
		const now = known ? await askJson(this.url) : {}, shared = now.shared_with ?? [];
		this.form = form(DEPLOYMENT(), now);
		this.title.textContent = known ? id : `${id}, a new one`;
		this.typed.placeholder = now.name ?? "";
		this.editor.hidden = !id;
		this.own.hidden = !known;
		fill(this.fields, this.form.element, shared.length > 0 && make("p.soft", `Its model, how many instances it has and where, is shared with ${shared.join(", ")}.`));
	}

	async showStatistics() {
		const {process, gpus, latency_ms: latency, ...all} = await askJson(`${this.url}/statistics`);
		fill(this.stats, tiles("Statistics", {State: all.state, Uptime: duration(all.uptime_seconds), Requests: all.requests, "A minute": all.requests_per_minute, "Error rate": say(100 * all.error_rate, " %", 1),
			"p50, p99": `${milliseconds(latency?.p50)}, ${milliseconds(latency?.p99)}`, "At once, mean": all.concurrent_requests, "Its model's memory": bytes(all.model_memory_bytes),
			"CPU, of all": say(process.cpu_percent, " %"), "Memory, of all": bytes(process.memory_bytes), ...Object.fromEntries(gpus.map(({name, type = "", memory_used_bytes: used}) => [`${name} ${type}`, bytes(used)]))}));
	}
}

class Keys extends Part {
	build() {
		this.table = make("div");
		this.place = make("div");
		this.only = make("select", {multiple: true, size: 3});
		this.made = textBlock("The new key");
		this.renew();
		return [this.table, make("h3", "A new key"), this.place, bar(changing("Create the key", () => this.create(), {className: "main"})), this.made];
	}

	renew() {
		this.form = form(KEY);
		this.form.element.append(make("label", "only for (none: for everything)", this.only));
		fill(this.place, this.form.element);
	}

	/** It stays to be seen, whatever is done meanwhile: nobody can ask for it again. */
	create() {
		const given = () => {
			const {calls, per: period, ...key} = this.form.read(), deployments = [...this.only.selectedOptions].map((one) => one.value);
			return {...key, ...(calls || period ? {quota: {calls, period}} : {}), ...(deployments.length ? {deployments} : {})};
		};
		const done = ({key}) => {
			this.made.say(key, `${key}\n\nshown this once`);
			this.renew();
		};
		return this.change("POST", "v1/keys", given, {done});
	}

	update() {
		const ids = [...deploymentIds(), ...catalogue.handlers.map((one) => one.path)];
		if (ids.length !== this.only.options.length) fill(this.only, ids.map((id) => option(id)));
		const drawn = make("div", table(["Key", "State", "For", "Quota", "Calls this month", "Change"], this.page.keys.map((one) => this.row(one)), {label: "All keys"}));
		drawn.querySelectorAll("tbody tr").forEach((row, at) => (row.dataset.key = this.page.keys[at].name));
		drawn.firstChild.id = "keys";
		morph(this.table, drawn);
	}

	row({name, disabled, admin, expires, deployments, quota, month_calls: calls}) {
		const url = `v1/keys/${path(name)}`, turn = disabled ? "Enable" : "Disable", state = [disabled && "disabled", admin && "admin", expires && `until ${expires}`].filter(Boolean).join(", ");
		const remove = ({currentTarget: pressed}) => {
			if (pressed.textContent !== "Delete") return this.change("DELETE", url);
			pressed.textContent = "Delete: sure?"; // nothing brings it back but a rollback of all
			return (pressed.onblur = () => (pressed.textContent = "Delete"));
		};
		return [name, state, deployments?.join(", ") ?? "everything", quota ? `${quota.used} of ${quota.calls} a ${quota.period}` : "", calls ?? "–",
			bar(changing(turn, () => this.change("PATCH", url, () => ({disabled: !disabled})), {label: `${turn} ${name}`}), changing("Delete", remove, {title: `Delete ${name}`}))];
	}
}

class Models extends Chooser {
	build() {
		const change = (dry) => this.change("PATCH", `v1/models/${path(this.list.value)}`, () => this.form.read(), {dry, done: () => this.renew()});
		return [super.build(make("span.soft", "What is left empty stays as it is.")), bar(this.both("Save the model", change))];
	}

	names() {
		return modelNames();
	}

	/** Empty fields, each with what the config has beside its name. */
	renew() {
		const now = this.page.config?.model_config_list.find(({config}) => config.name === this.list.value)?.config ?? {};
		this.form = form(MODEL);
		[...this.form.element.children].forEach((label, at) => label.firstChild.after(make("small.soft", ` now ${short(now[MODEL[at][0]], "the default")}`)));
		fill(this.place, this.form.element);
	}
}

class Upload extends Part {
	build() {
		this.name = make("input", {placeholder: "as the file is called"});
		this.version = field("integer", null, {...some, placeholder: "the next"});
		const version = make("label", "Version ", this.version);
		this.kinds = select("Take it as", ["model", "project of handlers"], (kind) => (version.hidden = kind !== "model"));
		return [this.about = make("p.soft"), this.fields = make("div", bar(this.kinds, make("label", "Name ", this.name), version), dropZone("Choose a file", ([file]) => this.send(file)))];
	}

	update() {
		const kind = this.page.config?.admin?.upload;
		this.fields.hidden = !kind;
		this.kinds.hidden = kind !== "code";
		this.about.textContent = kind ? "A SavedModel as .zip or .tar, or a .keras file, becomes a new version; under a name that the config does not have, a model." : 'Off: the config has no "admin": {"upload": true}.';
	}

	send(file) {
		const name = path(this.name.value || file.name.replace(/\..*$/, "")), number = this.version.read(), headers = {"Content-Type": "application/octet-stream"};
		if (this.kinds.lastChild.value !== "model") return this.change("PUT", `v1/projects/${name}`, () => file, {headers});
		return this.change(number ? "PUT" : "POST", `v1/models/${name}/versions${number ? `/${number}` : ""}`, () => file, {headers});
	}
}

class ConfigFile extends Part {
	build() {
		this.text = area({rows: 18, label: "The config file"});
		this.states = make("select");
		const done = () => this.take(), put = (dry) => this.change("PUT", "v1/config/file", () => this.text.value, {dry, done, headers: {"Content-Type": "application/json", "If-Match": this.tag}});
		const back = (dry) => this.change("POST", "v1/config/rollback", () => (this.states.value ? {to: this.states.value} : {}), {dry, done});
		return [make("p.soft", "Secrets are hidden, and stay what they are where they are sent back so."), this.text,
			bar(button("Check", () => put(true)), changing("Save the file", () => put(false), {className: "main"}), button("Read it again", () => this.attempt(() => this.reread(done)))),
			bar(make("label", "Earlier states ", this.states), button("What would change", () => back(true)), changing("Roll back", () => back(false)))];
	}

	/** What somebody is writing stays, and is of the state that it was read as: the server refuses it where that is no more. */
	update() {
		const states = this.page.history.kept.map(({name, until, undone}) => option(name, `${name}: until ${new Date(until).toLocaleString()}${undone ? ", undone" : ""}`));
		fill(this.states, option("", "before the last change"), states);
		if (this.text.value === (this.given ?? "")) this.take();
	}

	take() {
		this.tag = this.page.tag;
		this.given = this.text.value = this.page.config ? JSON.stringify(this.page.config, null, 2) : "";
	}
}
