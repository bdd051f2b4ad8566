// Try a handler: a body of any kind, kept in the tab; the answer by its type.

import {BASE, ask, session} from "./api.js";
import {Caller} from "./call.js";
import {Code, codeOf} from "./code.js";
import {area, button, download, dropZone, fill, heading, make, select, shownBitmap, textBlock} from "./dom.js";

export function show(root, one) {
	const panel = new HandlerPanel(one);
	fill(root, heading(one), make(one.state === "failed" ? "p.error" : "p.soft", one.reason || (one.envelope && `answers in the envelope “${one.envelope}”`)), panel.element);
	return () => panel.caller.clear();
}

class HandlerPanel {
	constructor(one) {
		this.place = `serving-draft ${BASE.pathname}${one.path}`;
		const {text = '"hello"', type = "application/json", method} = JSON.parse(session?.getItem(this.place) ?? "{}");
		Object.assign(this, {type, method: one.methods.includes(method) ? method : one.methods[0], url: one.path.slice(1)});
		this.caller = new Caller(() => this.send());
		this.body = area({className: "body", rows: 6, value: text, label: "Body of the request", oninput: () => this.keep()});
		this.fileName = make("span.soft");
		this.answer = make("div");
		this.json = textBlock("The answer", () => `${one.path.split("/").at(-1)}.json`);
		this.code = new Code((own) => codeOf(own, this.url, this.file ?? this.body.value, this.method, this.sentType));
		const rows = this.caller.rows(one.methods.length > 1 && select("Method", one.methods, (value) => this.keep((this.method = value)), this.method),
			select("Body", [["application/json", "JSON"], ["text/plain", "text"]], (value) => this.keep((this.type = value)), this.type));
		this.element = make("div", this.body, dropZone("Send a file instead", ([file]) => this.take(file), {extra: [this.fileName, button("Forget the file", () => this.take(null))]}), rows, this.answer, this.json, this.code.element);
	}

	keep() {
		this.caller.fail("");
		this.code.soon();
		const {value} = this.body, text = value.length < 1e5 ? value : undefined; // storage is small
		session?.setItem(this.place, JSON.stringify({text, type: this.type, method: this.method}));
	}

	take(file) {
		this.file = file;
		this.fileName.textContent = file?.name ?? "";
		this.keep();
	}

	get sentType() {
		return this.file ? this.file.type || "application/octet-stream" : this.type;
	}

	async send() {
		const body = this.method === "GET" ? undefined : this.file ?? this.body.value;
		const found = await this.caller.run((signal) => ask(this.url, {page: false, method: this.method, body, signal, headers: {"Content-Type": this.sentType}}));
		if (found === undefined) return;
		const blob = found?.answer instanceof Blob && found.answer;
		fill(this.answer, blob && (await showBlob(blob)));
		this.json.tell(blob ? null : found?.text ?? found?.answer);
	}
}

async function showBlob(blob) {
	const save = button(`Download (${blob.type || "binary"}, ${blob.size} bytes)`, () => download("answer", blob));
	const bitmap = await createImageBitmap(blob).catch(() => null);
	return make("div", bitmap && shownBitmap(bitmap, "The picture that was answered"), save);
}
