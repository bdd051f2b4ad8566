// The OpenAPI document, to read and to try: operations by path, their parameters, bodies and answers.

import {ask} from "./api.js";
import {Caller} from "./call.js";
import {Code, curlOf} from "./code.js";
import {area, details, fill, fits, make, option, pretty, search, select, textBlock} from "./dom.js";

export function showApi(root, head, api) {
	const find = search("Search the operations", () => {
		for (const row of rows) row.hidden = !fits(row.firstChild.textContent, find.value);
	});
	const operations = Object.entries(api.paths).flatMap(([url, methods]) => Object.entries(methods).map(([method, operation]) => ({url, method: method.toUpperCase(), operation})));
	operations.sort((one, other) => one.url.includes("{") - other.url.includes("{")); // first paths without parameters
	const rows = operations.map((one) => {
		const row = make("details.card", make("summary", `${one.method} ${one.url}`, make("span.soft", `  ${one.operation.summary}`)));
		row.ontoggle = () => row.children.length === 1 && row.append(new Operation(one, api).element);
		return row;
	});
	return fill(root, head, make("p", make("strong", `${api.info.title} ${api.info.version}`)), find, rows);
}

function follow(api, value) {
	if (!value?.$ref) return value;
	return value.$ref.slice(2).split("/").reduce((at, name) => at?.[name], api);
}

/** A schema in short: names, the required ones with `*`, and types. */
function outline(api, schema) {
	const {type = "anything", format, enum: values, oneOf, items, properties, required, additionalProperties: others} = follow(api, schema) ?? {}, tell = (one) => outline(api, one);
	if (oneOf) return {"one of": oneOf.map(tell)};
	if (properties) return Object.fromEntries(Object.entries(properties).map(([name, one]) => [required?.includes(name) ? `${name} *` : name, tell(one)]));
	if (format === "binary") return "file";
	if (items && type === "array") return [tell(items)];
	return others ? {"any name": tell(others)} : (values ?? [type].flat()).join(" or ");
}

const tellContent = (api, content = {}) => Object.entries(content).map(([type, {schema}]) => `${type}: ${pretty(outline(api, schema))}`).join("\n");

class Operation {
	constructor({url, method, operation}, api) {
		Object.assign(this, {url, method, operation, api, fields: [], type: ""});
		this.caller = new Caller(() => this.send(), "Try it");
		this.answer = textBlock("The answer");
		this.code = new Code((own) => curlOf(own, ...this.call));
		const body = operation.requestBody, parameters = operation.parameters?.map((one) => this.field(one));
		const fields = make("div", make("div.fields", parameters), body && this.bodyFields(body));
		fields.oninput = () => this.code.soon();
		this.element = make("div", fields, this.caller.rows(), this.answer,
			body && details("Body", make("pre", {tabIndex: 0}, tellContent(api, body.content))), details("Answers", this.answers()), this.code.element);
	}

	field(parameter) {
		const {name, required, description, schema: {enum: values}} = parameter;
		const input = values ? make("select", (required ? values : ["", ...values]).map((one) => option(one))) : make("input", {required, placeholder: description});
		this.fields.push({parameter, input});
		return make("label", {title: description}, `${name}${required ? " *" : ""} (${parameter.in})`, input);
	}

	bodyFields({content}) {
		const types = Object.keys(content), first = types.find((one) => one.includes("json")) ?? types[0], form = make("div.fields");
		const pick = (type) => {
			const {example, schema} = content[type], json = type.includes("json"), parts = json ? {} : follow(this.api, schema)?.properties ?? {file: {format: "binary"}};
			this.type = type;
			this.form = Object.entries(parts).map(([name, {format}]) => [name, make("input", {type: format === "binary" ? "file" : "text"})]);
			fill(form, this.form.map(([name, input]) => make("label", name, input)));
			this.body.hidden = !json;
			if (json) this.body.value = JSON.stringify(example ?? {}, null, 1);
		};
		this.body = area({rows: 6, label: "Body"});
		pick(first);
		return make("div", types.length > 1 ? select("Body", types, pick, first) : make("span.soft", first), this.body, form);
	}

	answers() {
		const told = new Set([""]);
		return make("ul", Object.entries(this.operation.responses).map(([status, one]) => {
			const {description = "", content} = follow(this.api, one), schema = tellContent(this.api, content);
			return make("li", `${status}: ${description}`, !told.has(schema) && told.add(schema) && make("pre", {tabIndex: 0}, schema));
		}));
	}

	get call() {
		let url = this.url.slice(1), body;
		const query = new URLSearchParams(), headers = {};
		for (const {parameter, input} of this.fields) {
			if (parameter.in === "path") url = url.replace(`{${parameter.name}}`, encodeURIComponent(input.value));
			else if (input.value && parameter.in === "query") query.set(parameter.name, input.value);
			else if (input.value) headers[parameter.name] = input.value;
		}
		if (this.type.startsWith("multipart/")) {
			body = new FormData();
			for (const [name, {value, files}] of this.form) if (value) body.append(name, files?.[0] ?? value);
		} else if (this.type) {
			body = this.form.length ? this.form[0][1].files[0] : this.body.value.replaceAll("\n", " ");
			headers["Content-Type"] = this.type.replace("*/*", "application/octet-stream");
		}
		return [String(query) ? `${url}?${query}` : url, this.method, headers, body];
	}

	async send() {
		if (!this.fields.every(({input}) => input.reportValidity())) return;
		this.answer.say("");
		const [url, method, headers, body] = this.call;
		const found = await this.caller.run((signal) => ask(url, {page: false, method, headers, body, signal}));
		if (!found) return;
		const {answer, response} = found;
		const text = answer instanceof Blob ? `(${answer.type}, ${answer.size} bytes)` : typeof answer === "string" ? answer : found.text;
		this.answer.say(text ?? JSON.stringify(answer), `${response.status} ${response.headers.get("Content-Type") ?? ""}\n${text ?? pretty(answer)}`);
	}
}
