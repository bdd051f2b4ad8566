// A call as code, with or without the user's key.

import {BASE, ask, catalogue, key, post} from "./api.js";
import {bar, button, details, download, fill, make, option, textBlock} from "./dom.js";

const JSON_TYPE = "application/json", LONGEST = 60000; // characters of a body, as the server writes it into a program

/** Whether a body can stand in a program of any language. */
function isShortJson(body, type) {
	try {
		JSON.parse(body);
	} catch {
		return false;
	}
	return type === JSON_TYPE && body.length < LONGEST && body.replace(/[,:]/g, ", ").replace(/[^ -~]/g, "\\u0000").length < LONGEST;
}

const word = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** A call for curl in one line; a body that is long, or has several lines, is a `file` beside it. */
export function curlOf(own, url, method, headers, body) {
	const words = ["curl --fail-with-body -X", method], sent = {...(key.get() ? {Authorization: `Bearer ${own ?? "YOUR_KEY"}`} : {}), ...headers};
	for (const [name, value] of Object.entries(sent)) words.push("-H", word(`${name}: ${value}`));
	let file = body instanceof Blob ? body : null;
	if (body instanceof FormData) for (const [name, value] of body) words.push(...(value instanceof Blob ? ["-F", word(`${name}=@${value.name}`)] : ["--form-string", word(`${name}=${value}`)]));
	else if (typeof body === "string" && body.length < LONGEST && !body.includes("\n")) words.push("--data-raw", word(body));
	else if (body) file ??= new File([body], headers["Content-Type"] === JSON_TYPE ? "body.json" : "body.txt");
	if (file) words.push("--data-binary", word(`@${file.name}`));
	return {curl: [...words, word(String(new URL(url, BASE)))].join(" "), file};
}

/** The code of a call: what to ask for it, or curl's where the body is no short JSON; without a body it has an example. */
export function codeOf(language, own, url, body, method = "POST", type = JSON_TYPE) {
	const call = JSON.stringify({path: `/${url}`, method, ...(own ? {key: own} : {})}), bare = body === undefined || method === "GET";
	if (!bare && !isShortJson(body, type)) return curlOf(own, url, method, {"Content-Type": type}, body);
	return {path: `v1/client/${language}`, body: bare ? call : `${call.slice(0, -1)},"body":${body}}`};
}

/** `question(language, key)` is what to ask for code, {path, body}, or {curl, file}. */
export class Code {
	constructor(question, summary = "This call as code") {
		this.question = question;
		this.list = make("select", {onchange: () => this.show()});
		this.withKey = make("input", {type: "checkbox", onchange: () => this.show()});
		this.block = textBlock("Code of this call", () => this.chosen.file);
		this.hint = make("p.soft");
		const content = [bar(make("label", "Language ", this.list), make("label", this.withKey, "with my key")), this.hint, this.block];
		this.element = summary ? details(summary, ...content) : make("div", ...content);
		this.element.classList.add("code");
		this.element.ontoggle = () => this.show();
	}

	soon() {
		clearTimeout(this.timer);
		this.timer = setTimeout(() => this.show(), 200);
	}

	get chosen() {
		return catalogue.languages.find((one) => one.id === this.list.value);
	}

	async show() {
		const {list} = this;
		if (list.options.length !== catalogue.languages.length) fill(list, ...catalogue.languages.map((one) => option(one.id, one.name)));
		if (this.element.open === false) return;
		const turn = (this.turn = (this.turn ?? 0) + 1);
		this.withKey.disabled = !key.get();
		try {
			const own = this.withKey.checked ? key.get() : null, asked = this.question(list.value, own), {curl, file} = asked;
			list.disabled = Boolean(curl);
			if (curl) list.value = "curl";
			fill(this.hint, `Needs ${this.chosen.needs}; saved as ${this.chosen.file} it runs by ${this.chosen.run}`, file && [" beside ", button(file.name, () => download(file.name, file))]);
			const code = curl ?? (await (await this.ask(asked, own)).text());
			if (turn === this.turn) this.block.say(code);
		} catch (error) {
			if (turn === this.turn) this.block.say(error.message);
		}
	}

	/** The server puts the key in: it knows how each language quotes. */
	ask({path, body}, own) {
		const [, deployment, query] = /^(.*)\/client\/.*?\?(.*)/.exec(path) ?? [];
		if (body) return post(path, body, undefined, true);
		return own ? post(`v1/client/${this.list.value}`, JSON.stringify({path: `/${deployment}/predict?${query}`, key: own}), undefined, true) : ask(path);
	}
}
