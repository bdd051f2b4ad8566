// Manage: deployments, keys, models, uploads and the config file, for a key marked admin. What a change would be can be seen
// beforehand; what came of it, or why it was refused, stands in the part where it was asked for.

import {ask, askJson, catalogue, path, refresh} from "./api.js";
import {tellError} from "./call.js";
import {$, area, bar, button, bytes, dropZone, duration, fill, make, milliseconds, option, select, show as say, table, textBlock, tiles} from "./dom.js";
import {field, form} from "./fields.js";
import {morph} from "./live.js";

const namesOf = (list) => list.map((one) => one.name);
const DEPLOYMENT = () => [["name"], ["model", namesOf(catalogue.models)], ["version", "integer", {min: 0}], ["version_label"], ["version_tag"], ["label_map", "json", {placeholder: "a file, or JSON"}],
	["threshold", "number"], ["routines", "json", {placeholder: '[{"name": "NMS"}]'}], ["default", "boolean"], ["instances", "integer", {min: 1}], ["resource_type", ["AUTO", "CPU", "GPU"]], ["number_of_gpus", "integer", {min: 0}],
	["gpu_type"], ["region"], ["upload_groups"], ["evaluation_threshold", "number"], ["evaluation_strategy", ["entropy", "least_confidence", "margin"]]];

export async function show(root) {
	if (!catalogue.key.admin) return fill(root, make("p.empty", "Only a key that is marked admin may change what is served, where the config has the section `admin`."));
	const page = {warning: make("p.warning", {role: "status"})}, parts = Object.entries({Deployments, Keys, Models, Upload, "Config file": ConfigFile}).map(([title, Kind]) => new Kind(page, title));
	page.read = async () => {
		const [history, {keys}, file] = await Promise.all([askJson("v1/config/history"), askJson("v1/keys"), ask("v1/config/file").catch(() => null)]);
		Object.assign(page, {history, keys, tag: file?.headers.get("ETag"), config: await file?.json()});
		page.warning.textContent = history.writable ? "" : `The config file cannot be changed: ${history.reason}`;
		for (const part of parts) {
			part.update();
			part.guard();
		}
	};
	await page.read();
	return fill(root, page.warning, parts.map((part) => part.element));
}

/** A button that changes the config file; nobody can press it where that cannot be written. */
const changing = (text, onclick, properties = {}) => button(text, onclick, {"data-writes": "", ...properties});

/** One that is pressed twice: what it does is not taken back by pressing it again. */
function sure(text, onclick, properties) {
	return changing(text, ({currentTarget: pressed}) => {
		if (pressed.textContent !== text) return onclick();
		pressed.textContent = `${text}: sure?`;
		return (pressed.onblur = () => (pressed.textContent = text));
	}, properties);
}

const tellNow = (value) => (value === undefined ? "the default" : short(value));

const short = (value) => (value === undefined ? "nothing" : JSON.stringify(value).slice(0, 200));

function tell({changes = [], written, dry_run: dry, problems, version, model, digest}) {
	const lines = make("ul", changes.map((one) => make("li", make("code", one.path), `: ${short(one.old)} → ${short(one.new)}`)));
	return [version && make("p", `Version ${version} of ${model} is served. ${digest}`), changes.length ? make("p", written ? "Changed:" : "Would change:") : version ? null : make("p", `Nothing ${dry ? "would change" : "had to change"}.`),
		changes.length > 0 && lines, problems?.length > 0 && make("p.warning", ["As before:", ...problems].join("\n"))];
}

class Part {
	constructor(page, title) {
		this.page = page;
		this.said = make("div", {role: "status"});
		this.element = make("section.card", {label: title}, make("h2", title), this.build(), this.said);
	}

	/** Draw what depends on what the server says; what somebody is filling in stays. */
	update() {}

	guard() {
		for (const one of this.element.querySelectorAll("[data-writes]")) one.disabled = !this.page.history.writable;
	}

	say(...content) {
		fill(this.said, ...content);
		this.said.scrollIntoView({block: "nearest"});
	}

	async attempt(work) {
		const waiting = make("p.soft", "…");
		this.say(waiting);
		try {
			const done = await work();
			waiting.remove();
			return done;
		} catch (error) {
			this.say(make("p.error", tellError(error)));
			return null;
		}
	}

	/** Ask for a change, or what it would be, with what `given()` returns; the server's answer, null where it was refused. */
	change(method, url, given = () => undefined, dry = false, headers = {"Content-Type": "application/json"}) {
		return this.attempt(async () => {
			const body = given(), sent = typeof body === "string" || body instanceof Blob ? body : JSON.stringify(body);
			try {
				const answer = await (await ask(dry ? `${url}?dry_run=1` : url, {method, headers, body: sent})).json();
				if (!dry) await this.reread();
				this.say(...tell({...answer, dry_run: dry}));
				return answer;
			} catch (error) {
				if (error.status === 500) await this.reread(); // it is in force, but for what failed
				throw error;
			}
		});
	}

	async reread() {
		await refresh();
		await this.page.read();
	}

	/** What would change, and the button that does it. */
	both(text, change) {
		return [button("What would change", () => change(true)), changing(text, () => change(false), {className: "main"})];
	}
}

class Deployments extends Part {
	build() {
		this.list = make("select", {onchange: () => this.attempt(() => this.edit(this.list.value))});
		this.id = make("input", {placeholder: "its id", label: "Id of a new deployment"});
		this.editor = make("div");
		const create = () => this.id.value && this.attempt(() => this.edit(this.id.value));
		this.id.onkeydown = ({key}) => {
			if (key === "Enter") create();
		};
		return [bar(make("label", "Deployment ", this.list), this.id, button("New", create)), this.editor];
	}

	update() {
		const ids = catalogue.deployments.map((one) => one.id);
		fill(this.list, ["", ...ids].map((id) => option(id, id || "choose…")));
		this.list.value = ids.includes(this.shown) ? this.shown : "";
		if (this.list.value && !this.form.touched().length) this.renew().catch((error) => this.say(make("p.error", tellError(error))));
		else if (!this.list.value && !this.isNew) fill(this.editor);
	}

	/** The form of a deployment as the config has it, or of a new one. */
	edit(id) {
		const known = catalogue.deployments.some((one) => one.id === id), url = `deployments/${path(id)}`, name = make("input", {label: "Its name, typed to delete it"});
		const fields = make("div"), stats = make("div");
		this.shown = this.list.value = id;
		this.isNew = !known;
		this.id.value = "";
		this.renew = async () => {
			const now = known ? await askJson(url) : {model: ""};
			this.form = form(DEPLOYMENT(), now);
			fill(fields, this.form.element, now.shared_with?.length > 0 && make("p.soft", `Its model, and how many instances it has and where, are those of ${now.shared_with.join(", ")} too.`));
			name.placeholder = now.name ?? "";
		};
		const change = (dry) => this.change(known ? "PATCH" : "PUT", url, () => this.form.read(), dry).then((done) => done && !dry && (known ? this.renew() : this.edit(id)));
		fill(this.editor, id && [make("h3", known ? id : `${id}, a new one`), fields, bar(this.both(known ? "Save" : "Create", change)),
			known && bar(button("Statistics", () => this.attempt(() => this.showStatistics(stats, url))), name, changing("Delete", () => this.change("DELETE", url, () => ({name: name.value})))), stats]);
		this.guard();
		return id && this.renew();
	}

	async showStatistics(place, url) {
		const {process, gpus, latency_ms: latency, ...all} = await askJson(`${url}/statistics`);
		fill(place, tiles("Statistics", {State: all.state, Uptime: duration(all.uptime_seconds), Requests: all.requests.toLocaleString(), "A minute": say(all.requests_per_minute), "Error rate": say(100 * all.error_rate, " %", 1),
			"p50, p99": latency ? `${milliseconds(latency.p50)}, ${milliseconds(latency.p99)}` : "–", "At once, mean": say(all.concurrent_requests, "", 2), "Its model's memory": bytes(all.model_memory_bytes),
			"CPU, of all": say(process.cpu_percent, " %"), "Memory, of all": bytes(process.memory_bytes), ...Object.fromEntries(gpus.map((gpu) => [`${gpu.name}${gpu.type ? `, ${gpu.type}` : ""}`, bytes(gpu.memory_used_bytes)]))}));
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
		this.form = form([["name"], ["calls", "integer", {min: 1}], ["per", ["minute", "hour", "day", "month"]], ["expires", "date"], ["admin", "boolean"]]);
		this.form.element.append(make("label", "only for (none: for everything)", this.only));
		fill(this.place, this.form.element);
	}

	async create() {
		const given = () => {
			const {calls, per: period, ...key} = this.form.read(), deployments = [...this.only.selectedOptions].map((one) => one.value);
			return {...key, ...(calls || period ? {quota: {calls, period}} : {}), ...(deployments.length ? {deployments} : {})};
		};
		const answer = await this.change("POST", "v1/keys", given);
		if (!answer) return;
		this.made.say(answer.key);
		this.renew();
		this.say(make("p", "The key above is shown this once."));
	}

	update() {
		const ids = [...catalogue.deployments.map((one) => one.id), ...catalogue.handlers.map((one) => one.path)];
		if (ids.join() !== [...this.only.options].map((one) => one.value).join()) fill(this.only, ids.map((id) => option(id)));
		const rows = this.page.keys.map((one) => {
			const url = `v1/keys/${path(one.name)}`, {quota} = one;
			return [one.name, [one.disabled && "disabled", one.admin && "admin", one.expires && `until ${one.expires}`].filter(Boolean).join(", "), one.deployments?.join(", ") ?? "everything", quota ? `${quota.used} of ${quota.calls} a ${quota.period}` : "", one.month_calls ?? "–",
				bar(changing(one.disabled ? "Enable" : "Disable", () => this.change("PATCH", url, () => ({disabled: !one.disabled})), {label: `${one.disabled ? "Enable" : "Disable"} ${one.name}`}), sure("Delete", () => this.change("DELETE", url), {title: `Delete ${one.name}`}))];
		});
		const drawn = make("div", table(["Key", "State", "For", "Quota", "Calls this month", ""], rows, {label: "Keys"}));
		drawn.querySelectorAll("tbody tr").forEach((row, at) => (row.dataset.key = this.page.keys[at].name));
		morph(this.table, drawn);
	}
}

class Models extends Part {
	build() {
		this.list = make("select", {onchange: () => this.renew()});
		this.place = make("div");
		const change = (dry) => this.change("PATCH", `v1/models/${path(this.list.value)}`, () => this.form.read(), dry).then((done) => done && !dry && this.renew());
		return [bar(make("label", "Model ", this.list), make("span.soft", "What is left empty stays as it is.")), this.place, bar(this.both("Save the model", change))];
	}

	update() {
		const was = this.list.value, names = namesOf(catalogue.models);
		fill(this.list, names.map((name) => option(name)));
		if (names.includes(was)) this.list.value = was;
		if (!this.form?.touched().length) this.renew();
	}

	/** Empty fields, each with what the config has beside its name. */
	renew() {
		const now = this.page.config?.model_config_list.find((one) => one.config.name === this.list.value)?.config ?? {};
		this.form = form([["load", ["eager", "on_demand"]], ["pinned", "boolean"], ["instances", "integer", {min: 1}], ["target_device", "json", {placeholder: "AUTO, CPU, GPU, GPU:1"}]]);
		for (const label of this.form.element.children) label.firstChild.after(make("small.soft", ` now ${tellNow(now[label.firstChild.data.replaceAll(" ", "_")])}`));
		fill(this.place, this.form.element);
	}
}

class Upload extends Part {
	build() {
		this.about = make("p.soft");
		this.name = make("input", {placeholder: "as the file is called"});
		this.version = field("integer", null, {min: 1, placeholder: "the next"});
		this.zone = dropZone("Choose a file", ([file]) => this.send(file), {accept: ".zip,.tar,.gz,.tgz,.keras"});
		this.fields = make("div", bar(this.kinds = select("Take it as", [["models", "a model"], ["projects", "a project of handlers"]], (kind) => (this.version.parentElement.hidden = kind === "projects")),
			make("label", "Name ", this.name), make("label", "Version ", this.version)), this.zone);
		return [this.about, this.fields];
	}

	update() {
		const kind = this.page.config?.admin?.upload;
		this.fields.hidden = !kind;
		this.kinds.hidden = kind !== "code";
		this.about.textContent = kind ? "A SavedModel as .zip or .tar, or a .keras file, becomes a new version; a name that the config does not have becomes a model of it." : 'Off: the config has no "admin": {"upload": true}.';
	}

	send(file) {
		const name = path(this.name.value || file.name.replace(/\..*$/, "")), project = $("select", this.kinds).value === "projects", version = this.version.read();
		this.said.textContent = "";
		return project ? this.change("PUT", `v1/projects/${name}`, () => file, false, {}) : this.change(version == null ? "POST" : "PUT", `v1/models/${name}/versions${version == null ? "" : `/${version}`}`, () => file, false, {"Content-Type": "application/octet-stream"});
	}
}

class ConfigFile extends Part {
	build() {
		this.text = area({rows: 18, label: "The config file"});
		this.states = make("select");
		const put = (dry) => this.change("PUT", "v1/config/file", () => this.text.value, dry, {"Content-Type": "application/json", "If-Match": this.tag}).then((done) => done && !dry && this.take());
		const back = (dry) => this.change("POST", "v1/config/rollback", () => (this.states.value ? {to: this.states.value} : {}), dry).then((done) => done && !dry && this.take());
		this.back = changing("Roll back", () => back(false));
		return [make("p.soft", "Secrets are hidden, and stay what they are where they are sent back so."), this.text,
			bar(button("Check", () => put(true)), changing("Save the file", () => put(false), {className: "main"}), button("Read it again", () => this.attempt(() => this.reread().then(() => this.take())))),
			bar(make("label", "Earlier states ", this.states), button("What would change", () => back(true)), this.back)];
	}

	/** What somebody is writing stays, and is of the state that it was read as: the server refuses it where that is no more. */
	update() {
		const {kept} = this.page.history, when = ({until, undone}) => `until ${new Date(until).toLocaleString()}${undone ? ", undone" : ""}`;
		fill(this.states, option("", "before the last change"), kept.map((one) => option(one.name, `${one.name}: ${when(one)}`)));
		if (this.text.value === (this.given ?? "")) this.take();
	}

	take() {
		this.tag = this.page.tag;
		this.given = this.text.value = this.page.config ? JSON.stringify(this.page.config, null, 2) : "";
	}
}
