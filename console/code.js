// A call as code, with or without the user's key.

import {BASE, catalogue, key, post} from "./api.js";
import {bar, button, details, download, fill, make, option, textBlock} from "./dom.js";

const LONGEST = 60000; // characters of a body in a program
const PICTURE = "picture.jpg"; // in the server's programs

const word = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

/** A file of a form, as curl's -F takes it. */
const partOf = (name, file) => `${name}=@${/^[\w.-]+$/.test(file) ? file : `"${file.replace(/["\\]/g, "\\$&")}"`}`;

/** A call for curl, in one line; a long body, or one of several lines, is a `file` beside it. */
export function curlOf(own, url, method, headers, body) {
	const file = body instanceof Blob ? body : body?.length > LONGEST || body?.includes?.("\n") ? new File([body], "body.txt") : null;
	const parts = body instanceof FormData ? [...body].flatMap(([name, value]) => (value.name ? ["-F", partOf(name, value.name)] : ["--form-string", `${name}=${value}`])) : body ? ["--data-raw", body] : [];
	const all = {...(key.get() && {Authorization: `Bearer ${own ?? "YOUR_KEY"}`}), ...headers};
	const words = ["curl", "--fail-with-body", "-X", method, ...Object.entries(all).flatMap(([name, value]) => ["-H", `${name}: ${value}`]), ...(file ? ["--data-binary", `@${file.name}`] : parts), String(new URL(url, BASE))];
	return {curl: words.map(word).join(" "), file};
}

/** How to ask for a call's code: curl's if the body is no short JSON; without a body it has an example. */
export function codeOf(own, url, body, method = "POST", type = "application/json") {
	const call = JSON.stringify({path: `/${url}`, method, ...(own && {key: own})});
	if (body === undefined || method === "GET") return {body: call};
	try {
		if (type === "application/json" && JSON.parse(body) !== null && encodeURIComponent(body).length < LONGEST) return {body: `${call.slice(0, -1)},"body":${body}}`}; // at least the server's count
	} catch {
		// no JSON
	}
	return curlOf(own, url, method, {"Content-Type": type}, body);
}

/** `question(key)` tells which code: {body} to ask for it with, or {curl, file}; `picture` names one. */
export class Code {
	constructor(question, summary = "This call as code") {
		Object.assign(this, {question, turn: 0});
		this.list = make("select", catalogue.languages.map((one) => option(one.id, one.name)));
		this.withKey = make("input", {type: "checkbox"});
		this.block = textBlock("Code of this call", () => this.chosen.file);
		this.hint = make("p.soft");
		const content = [bar(make("label", "Language ", this.list), make("label", this.withKey, "with my key")), this.hint, this.block];
		this.element = summary ? details(summary, ...content) : make("div", ...content);
		this.element.classList.add("code");
		this.element.onchange = this.element.ontoggle = () => this.show();
	}

	soon() {
		clearTimeout(this.timer);
		if (this.element.open !== false) this.timer = setTimeout(() => this.show(), 200);
	}

	get chosen() {
		return catalogue.languages.find((one) => one.id === this.list.value);
	}

	async show() {
		const {list} = this;
		if (this.element.open === false) return;
		const turn = ++this.turn;
		this.withKey.disabled = !key.get();
		try {
			const own = this.withKey.checked ? key.get() : undefined, {body, curl, file, picture = PICTURE} = this.question(own);
			list.disabled = Boolean(curl);
			if (curl) list.value = "curl";
			this.hint.className = "soft";
			fill(this.hint, `Needs ${this.chosen.needs}. Save it as ${this.chosen.file}, then run ${this.chosen.run.replace(PICTURE, () => word(picture))}`, file && [" beside ", button(file.name, () => download(file.name, file))]);
			const code = curl ?? (await (await post(`v1/client/${list.value}`, body, undefined, true)).text());
			if (turn === this.turn) this.block.say(code.replace(partOf("image", PICTURE), () => word(partOf("image", picture))));
		} catch (error) {
			if (turn !== this.turn) return;
			Object.assign(this.hint, {className: "error", textContent: error.message});
			this.block.say("");
		}
	}
}
