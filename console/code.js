// A call as code, with or without the user's key.

import {ask, catalogue, key, post} from "./api.js";
import {bar, details, fill, make, option, textBlock} from "./dom.js";

/** What to ask for the code of a call with a JSON body. */
export function codeOf(language, own, url, text, method = "POST") {
	const body = method === "GET" ? undefined : JSON.parse(text);
	return {path: `v1/client/${language}`, body: JSON.stringify({path: `/${url}`, method, body, ...(own ? {key: own} : {})})};
}

/** `question(language, key)` is what to ask for code: {path, body}; nothing where none can be written. */
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
		this.hint.textContent = `Needs ${this.chosen.needs}; saved as ${this.chosen.file} it runs by ${this.chosen.run}`;
		const turn = (this.turn = (this.turn ?? 0) + 1);
		this.withKey.disabled = !key.get();
		try {
			const own = this.withKey.checked ? key.get() : null, asked = this.question(list.value, own);
			if (!asked) return this.block.say("");
			const code = await (await (asked.body ? post(asked.path, asked.body, undefined, true) : ask(asked.path))).text();
			if (turn === this.turn) this.block.say(own ? code.replaceAll("YOUR_KEY", own) : code);
		} catch (error) {
			if (turn === this.turn) this.block.say(error.message);
		}
	}
}
