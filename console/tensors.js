// Try a model: a form from its signature, its JSON body, the answer as JSON, table and chart.

import {askJson, onCatalogue, path, post, readJson, toBase64} from "./api.js";
import {Caller} from "./call.js";
import {bars} from "./charts.js";
import {Code, codeOf} from "./code.js";
import {area, button, details, drawOn, dropZone, fill, heading, make, notReady, select, status, table, textBlock} from "./dom.js";
import {versionPicker} from "./predict.js";

const INTEGERS = /^DT_U?INT/;
const MOST_CELLS = 64; // most fields for a row
const MOST_TABLES = 20; // most rows of an answer that have a table each

/** The sizes of a tensor: null for any size; null for any rank. */
const shapeOf = (tensor) => (tensor.tensor_shape?.unknown_rank ? null : (tensor.tensor_shape?.dim ?? []).map(({size}) => (Number(size) < 0 ? null : Number(size))));

export async function readSignatures(address) {
	const {metadata} = await askJson(`${address}/metadata`);
	return Object.entries(metadata.signature_def?.signature_def ?? {}).filter(([name]) => !name.startsWith("__"));
}

const typeOf = (tensor) => tensor.dtype.replace("DT_", "").toLowerCase();

export const tell = (tensor) => `${typeOf(tensor)} [${shapeOf(tensor)?.map((size) => size ?? "?").join(", ") ?? "…"}]`;

function filled(shape, value) {
	return shape.reduceRight((inner, size) => new Array(size ?? 1).fill(inner), value);
}

/** `above` stands between name and form; `onanswer(found)` gets each answer, null for an error. */
export async function show(root, one, above, onanswer) {
	if (one.state !== "ready") return fill(root, heading(one), above, notReady(one));
	const panel = new TensorPanel(one, onanswer);
	fill(root, heading(one), above, panel.element);
	await panel.read();
	const end = onCatalogue(() => panel.read().catch(() => {})); // a new version may differ
	return () => panel.caller.clear(end());
}

class TensorPanel {
	constructor(one, onanswer) {
		Object.assign(this, {one, onanswer, which: "", signature: "serving_default"});
		this.caller = new Caller(() => this.send());
		this.form = make("div.fields");
		this.body = area({className: "body", rows: 8, label: "Body of the request", oninput: () => this.code.soon()});
		this.answers = make("div");
		this.json = textBlock("The answer as JSON", () => `${one.name}.json`);
		this.code = new Code((own) => codeOf(own, this.url, this.body.value));
		this.bar = make("div.bar");
		this.exampler = button("Example", () => this.example());
		this.none = make("p.empty", "It has no signature with inputs, and cannot be called.");
		this.call = make("div", this.form, details("Body of the request", this.body), this.caller.rows(), this.answers, this.json, this.code.element);
		this.element = make("div", this.bar, this.none, this.call);
	}

	get url() {
		return `v1/models/${path(this.one.name)}${this.which}:predict`;
	}

	async read() {
		const {which} = this, found = await readSignatures(`v1/models/${path(this.one.name)}${which}`);
		if (which !== this.which || JSON.stringify(found) === JSON.stringify(this.found)) return;
		this.found = found;
		this.signatures = Object.fromEntries(found);
		if (!this.signatures[this.signature]) this.signature = Object.keys(this.signatures)[0];
		const names = Object.keys(this.signatures);
		fill(this.bar, versionPicker(this.one.name, (value) => this.choose(value), "newest", ["/versions/", "/labels/"], this.which),
			names.length > 1 && select("Signature", names, (name) => this.build((this.signature = name)), this.signature), this.exampler);
		this.build();
	}

	choose(which) {
		this.which = which;
		this.clear();
		this.code.soon();
		return this.read().catch((error) => this.caller.fail(error.message));
	}

	build() {
		this.clear();
		const {inputs = {}, outputs = {}} = this.signatures[this.signature] ?? {};
		this.none.hidden = Object.keys(inputs).length > 0;
		this.call.hidden = this.exampler.hidden = !this.none.hidden;
		this.files = {__proto__: null, ...this.one.examples?.[this.signature]}; // by input, as base64
		this.values = {__proto__: null}; // by input, as JSON: long numbers stay exact
		this.outputs = Object.keys(outputs);
		this.fields = Object.entries(inputs).sort().map(([name, tensor]) => ({name, tensor, ...fieldFor(name, tensor, (json) => this.write((this.values[name] = json)), this.files[name])}));
		fill(this.form, this.fields.map((field) => field.element), make("p.soft.wide", `answers ${this.outputs.map((name) => `${name}: ${tell(outputs[name])}`).join(", ")}`));
		this.example();
	}

	example() {
		for (const {name, tensor, fill: show} of this.fields) {
			const value = exampleOf(tensor, this.files[name]);
			this.values[name] = JSON.stringify(value);
			show(value);
		}
		this.write();
	}

	write() {
		const all = Object.entries(this.values), named = this.signature === "serving_default" ? "" : `"signature_name":${JSON.stringify(this.signature)},`;
		const inputs = all.length === 1 ? all[0][1] : `{${all.map(([name, json]) => `${JSON.stringify(name)}:${json}`)}}`;
		this.body.value = `{${named}"inputs":${inputs}}`;
		this.code.soon();
	}

	async send() {
		const found = await this.caller.run((signal) => post(this.url, this.body.value, signal));
		if (found !== undefined) this.showAnswer(found);
	}

	clear() {
		this.caller.clear();
		this.showAnswer(null);
	}

	showAnswer(found) {
		this.json.tell(found?.text ?? found?.answer);
		fill(this.answers, found && drawAnswer(found.answer, this.outputs[0]));
		this.onanswer?.(found);
	}
}

function exampleOf(tensor, b64) {
	return filled(shapeOf(tensor) ?? [1], tensor.dtype === "DT_STRING" ? (b64 ? {b64} : "hello") : tensor.dtype === "DT_BOOL" ? true : 1);
}

/** A field for an input: {element, fill(value)}; `set(json)` is called when the user changes it. */
function fieldFor(name, tensor, set, b64) {
	const shape = shapeOf(tensor), label = `${name}: ${tell(tensor)}`;
	const text = tensor.dtype === "DT_STRING", place = text ? b64?.startsWith("iVBOR") && {} : pictureOf(name, shape); // or a PNG
	if (place) return pictureField(label, tensor, shape, place, set);
	const cells = shape?.length < 2 ? 1 : shape?.length === 2 && shape[1];
	if (text && cells === 1 && !b64) return linesField(label, shape, set);
	return !text && cells && cells <= MOST_CELLS ? tableField(label, tensor, shape, set) : jsonField(label, set);
}

/** Where a shape has a picture's height, width and channels; null if it holds no pictures. */
function pictureOf(name, shape) {
	const [one, two, three, four] = shape ?? [], named = /image|pixel|picture/i.test(name), ofColours = (size) => [1, 3, 4].includes(size);
	const found = shape?.length === 4 ? (ofColours(four) ? {tall: two, wide: three, channels: four} : ofColours(two) && {tall: three, wide: four, channels: two, first: true})
		: shape?.length === 3 && (named && ofColours(three) ? {tall: one, wide: two, channels: three, single: true} : (named || (two && two === three)) && {tall: two, wide: three});
	return found && (found.tall ?? 99) > 4 ? found : null;
}

/** A text field; what `read` answers or throws is shown below it. */
function textField(label, {wide = true, ...properties}, read, write) {
	const text = area(properties), note = status("small.warning");
	text.oninput = () => {
		try {
			note.textContent = read(text.value) ?? "";
		} catch (error) {
			note.textContent = error.message;
		}
	};
	return {element: make(wide ? "label.wide" : "label", label, text, note), fill: (value) => {
		text.value = write(value);
		note.textContent = "";
	}};
}

/** Rows of numbers: typed, or pasted from a spreadsheet or CSV. */
function tableField(label, tensor, shape, set) {
	const flat = shape.length < 2, columns = flat ? 1 : shape[1], wide = columns > 1;
	const read = (text) => {
		const rows = text.trim() ? text.replace(/(\n *)+$/, "").split("\n").map((line) => line.replace(/^ +| +$/g, "").split(/ *[,;\t] *| +/)) : [];
		const headed = rows.length > 1 && rows[0].every((cell) => /^"[^"\d]/.test(toJson(cell))) && rows.shift();
		const values = rows.map((cells) => (flat && cells.length === 1 ? toJson(cells[0]) : `[${cells.map(toJson)}]`));
		set(shape.length || values.length > 1 ? `[${values}]` : values[0] ?? "null");
		const bad = rows.flat().find((cell) => !isNumber(cell, tensor.dtype)), wrong = rows.findIndex((cells) => cells.length !== columns);
		if (bad !== undefined) throw new Error(`“${bad}” is not a valid ${typeOf(tensor)}`);
		if (wrong >= 0) throw new Error(`Row ${wrong + 1} has ${rows[wrong].length} values, expected ${columns}`);
		return headed ? "The first line is left out, as a header." : "";
	};
	return textField(label, {wide, rows: wide ? 4 : 2, placeholder: wide ? `${columns} numbers per line, as in CSV` : "one number per line"}, read,
		(value) => (flat ? [value].flat() : value).map((cells) => [cells].flat().join(", ")).join("\n"));
}

/** A cell as JSON; what is no number stays text, which the server refuses. */
function toJson(text) {
	if (/^-?\d+$/.test(text)) return String(BigInt(text));
	if (/^(true|false)$/i.test(text)) return text.toLowerCase();
	if (/^-?(NaN|Infinity)$/.test(text)) return text; // as the server reads them
	return JSON.stringify(text && Number.isFinite(+text) ? +text : text);
}

function isNumber(text, dtype) {
	const json = toJson(text);
	return dtype === "DT_BOOL" ? /^[tf]/.test(json) : INTEGERS.test(dtype) ? Number.isInteger(+json) : !/^["tf]/.test(json);
}

function linesField(label, shape, set) {
	return textField(label, {rows: 3, placeholder: "one text per line"}, (text) => {
		const lines = text.replace(/\n$/, "").split("\n");
		set(JSON.stringify(shape.length === 2 ? lines.map((one) => [one]) : shape.length ? lines : text));
	}, (value) => [value].flat(3).join("\n"));
}

const jsonField = (label, set) => textField(`${label}, as JSON`, {rows: 4}, (text) => {
	set(text);
	readJson(text);
}, JSON.stringify);

const MOST_SIDES = 1024; // width + height if free: sent as text
const RANGES = {"0..255": [1, 0], "0..1": [1 / 255, 0], "-1..1": [2 / 255, -1]};

/** A picture in the tensor's size and the user's range; strings take the file. */
function pictureField(label, tensor, shape, place, set) {
	const file = tensor.dtype === "DT_STRING", whole = file || INTEGERS.test(tensor.dtype);
	const canvas = make("canvas", {width: 0, height: 0}), note = status("small");
	let bitmap = null, range = whole ? "0..255" : "0..1";
	const write = () => bitmap && set(JSON.stringify(pixels(bitmap, canvas, place, RANGES[range], whole)));
	const take = async ([given]) => {
		try {
			if (file) set(JSON.stringify(filled(shape ?? [1], {b64: await toBase64(given)})));
			else bitmap = await createImageBitmap(given);
			write();
			note.textContent = `${given.name}${bitmap ? `: ${canvas.width} × ${canvas.height} of ${bitmap.width} × ${bitmap.height} pixels` : ""}`;
		} catch {
			note.textContent = "The browser cannot read this picture.";
		}
	};
	const ranges = !whole && select("Numbers", Object.keys(RANGES), (value) => write((range = value)), range);
	return {element: make("div.wide", {role: "group", label}, label, dropZone("Choose a picture", take, {accept: "image/*", extra: [ranges, canvas, note]})), fill: () => (note.textContent = "no picture yet: an example of one colour")};
}

function pixels(bitmap, canvas, {tall, wide, channels, first, single}, [scale, offset], whole) {
	const {width, height} = bitmap, shrink = tall ? tall / height : wide ? wide / width : Math.min(1, MOST_SIDES / (width + height));
	drawOn(canvas, bitmap, wide ?? Math.ceil(width * shrink), tall ?? Math.ceil(height * shrink));
	const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
	const value = (byte) => (whole ? byte : Number((byte * scale + offset).toFixed(4)));
	const grey = (at) => Math.round(0.299 * data[at] + 0.587 * data[at + 1] + 0.114 * data[at + 2]);
	const number = (at, channel) => value(channels > 1 ? data[at + channel] : grey(at));
	const each = (count, made) => Array.from({length: count}, (_, index) => made(index));
	const plane = (made) => each(canvas.height, (y) => each(canvas.width, (x) => made(4 * (y * canvas.width + x))));
	const picture = !channels ? plane(number) : first ? each(channels, (channel) => plane((at) => number(at, channel))) : plane((at) => each(channels, (channel) => number(at, channel)));
	return single ? picture : [picture];
}

/** The answer as a table and a chart; `only` names a single output. */
function drawAnswer(answer, only = "output") {
	const outputs = answer?.outputs ?? answer?.predictions;
	if (outputs === undefined) return null;
	const named = isPlainObject(outputs) ? outputs : Array.isArray(outputs) && isPlainObject(outputs[0]) ? turn(outputs) : {[only]: outputs};
	return Object.entries(named).map(([name, value]) => drawOutput(name, value));
}

const isPlainObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value) && !("b64" in value);

const turn = (rows) => Object.fromEntries(Object.keys(rows[0]).map((name) => [name, rows.map((row) => row[name])]));

function drawOutput(name, value) {
	while (value?.length === 1 && Array.isArray(value[0]?.[0])) [value] = value; // a batch of one
	if (value.length <= MOST_TABLES && value.every?.((one) => Array.isArray(one?.[0]) && !Array.isArray(one[0][0]))) return value.flatMap((one, row) => drawOutput(`${name}, ${row}`, one));
	const all = [value].flat(), cells = all.slice(0, 1000).map((row) => [row].flat());
	if (!cells.length || cells.some((row) => row.some((cell) => typeof cell === "object"))) return null;
	const wide = Math.max(...cells.map((row) => row.length));
	const shown = table(["row", ...Array.from({length: Math.min(wide, 100)}, (_, index) => (wide > 1 ? index : name))], cells.map((row, index) => [index, ...row.slice(0, 100).map(String)]), `${name} as a table`);
	return [make("h3", name), chartOf(cells), details(all.length > 1000 ? `The first 1000 of ${all.length} rows` : "As a table", shown)];
}

function chartOf(cells) {
	const [first] = cells, alone = cells.length === 1;
	if (alone && first.length === 1) return make("p", String(first[0]));
	const numbers = alone ? first : cells.length <= 40 && cells.every((row) => row.length === 1) ? cells.flat() : [];
	if (numbers.length < 2 || !numbers.every((one) => typeof one === "number" && one >= 0)) return null;
	const rows = numbers.map((one, index) => [String(index), one]), greatest = rows.toSorted(([, one], [, other]) => other - one).slice(0, 5), few = rows.length <= 40;
	return make("div", !few && make("p.soft", "The five greatest"), bars(few ? rows : greatest, Math.max(1, greatest[0][1])));
}
