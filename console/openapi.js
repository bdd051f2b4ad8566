// The OpenAPI document, to read and to try: operations by path, their parameters, bodies and answers.

import {ask} from "./api.js";
import {Caller} from "./call.js";
import {area, bar, details, dropZone, fill, make, option, pretty, search, select, textBlock} from "./dom.js";

const METHODS = ["get", "put", "post", "delete", "patch", "head"];

export function showApi(root, head, api) {
	const find = search("Search the operations", () => {
		for (const {row, text} of rows) row.hidden = !text.includes(find.value.trim().toLowerCase());
	});
	const list = make("div");
	const operations = Object.entries(api.paths).flatMap(([url, item]) => METHODS.filter((method) => item[method]).map((method) => ({url, method, operation: item[method], shared: item.parameters ?? []})));
	operations.sort((one, other) => one.url.includes("{") - other.url.includes("{")); // first what has nothing to fill in
	const rows = operations.map((one) => {
		const text = `${one.method.toUpperCase()} ${one.url}`, row = details(text);
		row.querySelector("summary").append(make("span.soft", `  ${one.operation.summary ?? ""}`));
		row.className = "card";
		row.ontoggle = () => {
			if (row.children.length === 1) row.append(new Operation(one, api).element);
		};
		return {row, text: `${text} ${one.operation.summary ?? ""}`.toLowerCase()};
	});
	list.append(...rows.map(({row}) => row));
	return fill(root, head, make("p", make("strong", `${api.info.title} ${api.info.version}`), ` ${api.info.description ?? ""}`), find, list);
}

function follow(api, value) {
	if (!value?.$ref) return value;
	return value.$ref.slice(2).split("/").reduce((at, name) => at?.[name.replaceAll("~1", "/").replaceAll("~0", "~")], api);
}

class Operation {
	constructor({url, method, operation, shared}, api) {
		Object.assign(this, {url, method, operation, api, file: null, fields: []});
		this.caller = new Caller(() => this.send(), "Try it");
		this.answer = textBlock("The answer");
		const parameters = [...shared, ...(operation.parameters ?? [])].map((one) => follow(api, one));
		const body = follow(api, operation.requestBody);
		this.element = make("div", operation.description ? make("p", operation.description) : null, make("div.fields", parameters.map((one) => this.field(one))),
			body ? this.bodyFields(body) : null, bar(this.caller.buttons), this.caller.error, this.caller.times, this.answer, details("Answers", this.answers()));
	}

	field(parameter) {
		const {schema = {}, name, required, description} = parameter, own = follow(this.api, schema);
		const value = parameter.example ?? own.example ?? own.enum?.[0] ?? "";
		const input = own.enum ? make("select", (required ? own.enum : ["", ...own.enum]).map((one) => option(one))) : make("input", {value: required ? value : "", placeholder: description ?? ""});
		this.fields.push({parameter, input});
		return make("label", {title: description ?? ""}, `${name}${required ? " *" : ""} (${parameter.in})`, input);
	}

	bodyFields(body) {
		const types = Object.keys(body.content ?? {});
		this.type = types.find((one) => one.includes("json")) ?? types[0];
		this.body = area({rows: 6, "aria-label": "Body"});
		const chosen = make("span.soft");
		const files = dropZone("A file", ([file]) => {
			this.file = file;
			chosen.textContent = file.name;
		}, {extra: [chosen]});
		const pick = (type) => {
			this.type = type;
			this.file = null;
			chosen.textContent = "";
			const {example, examples, schema} = body.content[type] ?? {}, json = type.includes("json");
			this.body.hidden = !json;
			files.hidden = json;
			if (json) this.body.value = pretty(example ?? Object.values(examples ?? {})[0]?.value ?? schema?.example ?? {});
		};
		const element = make("div", types.length > 1 ? select("Body", types, pick, this.type) : make("span.soft", this.type ?? ""), this.body, files);
		pick(this.type);
		return element;
	}

	answers() {
		return make("ul", Object.entries(this.operation.responses ?? {}).map(([status, one]) => make("li", `${status}: ${follow(this.api, one).description ?? ""}`)));
	}

	async send() {
		let url = this.url.replace(/^\//, "");
		const query = new URLSearchParams(), headers = {};
		for (const {parameter, input} of this.fields) {
			if (parameter.in === "path") url = url.replace(`{${parameter.name}}`, encodeURIComponent(input.value));
			else if (input.value && parameter.in === "query") query.set(parameter.name, input.value);
			else if (input.value && parameter.in === "header") headers[parameter.name] = input.value;
		}
		let body;
		if (this.body && this.type.startsWith("multipart/")) {
			body = new FormData();
			if (this.file) body.append("file", this.file);
		} else if (this.body) {
			body = this.file ?? this.body.value;
			headers["Content-Type"] = this.type;
		}
		const found = await this.caller.run((signal) => ask(String(query) ? `${url}?${query}` : url, {page: false, method: this.method.toUpperCase(), headers, body, signal}));
		if (!found) return;
		const {answer, response} = found;
		const text = answer instanceof Blob ? `(${answer.type}, ${answer.size} bytes)` : typeof answer === "string" ? answer : pretty(answer);
		this.answer.say(text ?? "", `${response.status} ${response.headers.get("Content-Type") ?? ""}\n${text ?? ""}`);
	}
}
