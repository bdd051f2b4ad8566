// Try a model: a form from its signature, the body that it writes, the answer as JSON, table and chart.

import { ask, askJson, catalogue, path } from "./api.js";
import { Caller } from "./call.js";
import { bars } from "./charts.js";
import { Code, codeOf } from "./code.js";
import { button, details, dot, dropZone, make, pretty, select, table, textBlock, toBase64 } from "./dom.js";

const INTEGERS = /^DT_U?INT/;
const MOST_CELLS = 64; // of a row that is typed into fields

/** The sizes of a tensor: null where any will do; null for any rank. */
const shapeOf = (tensor) => (tensor.tensor_shape?.unknown_rank ? null : (tensor.tensor_shape?.dim ?? []).map(({ size }) => (Number(size) < 0 ? null : Number(size))));

const typeOf = (tensor) => tensor.dtype.replace("DT_", "").toLowerCase();

export const tell = (tensor) => `${typeOf(tensor)} ${shapeOf(tensor) ? `[${shapeOf(tensor).map((size) => size ?? "?").join(", ")}]` : "[…]"}`;

function filled(shape, value) {
  return (shape ?? []).reduceRight((inner, size) => Array.from({ length: size ?? 1 }, () => inner), value);
}

export async function show(root, one) {
  if (one.state !== "ready") {
    root.replaceChildren(heading(one), make("p", { className: one.state === "failed" ? "error" : "empty", textContent: one.reason || (one.state === "empty" ? "It has no versions." : "It is being loaded.") }));
    return null;
  }
  const panel = new TensorPanel(one);
  root.replaceChildren(heading(one), panel.element);
  await panel.read();
  return () => panel.caller.clear();
}

export const heading = (one) => make("h2", {}, dot(one.state), ` ${one.name}`);

export class TensorPanel {
  constructor(one, onanswer = () => {}) {
    Object.assign(this, { one, onanswer, which: "", signature: "serving_default" });
    this.caller = new Caller(() => this.send());
    this.form = make("div", { className: "fields" });
    this.body = make("textarea", { rows: 8, spellcheck: false, className: "body", "aria-label": "Body of the request", oninput: () => this.code.soon() });
    this.answers = make("div");
    this.json = textBlock("The answer as JSON", `${one.name}.json`);
    this.code = new Code((language, own) => codeOf(language, own, this.url, this.body.value));
    this.bar = make("div", { className: "bar" });
    this.element = make("div", {}, this.bar, this.form, (this.raw = details("Body of the request", this.body)), make("div", { className: "bar" }, this.caller.buttons),
      this.caller.error, this.caller.times, this.answers, (this.answerJson = make("div", { hidden: true }, this.json)), this.code.element);
  }

  get url() {
    return `v1/models/${path(this.one.name)}${this.which}:predict`;
  }

  async read() {
    const { metadata } = await askJson(`v1/models/${path(this.one.name)}${this.which}/metadata`);
    this.signatures = Object.fromEntries(Object.entries(metadata.signature_def.signature_def).filter(([name]) => !name.startsWith("__")));
    if (!this.signatures[this.signature]) this.signature = Object.keys(this.signatures)[0];
    const names = Object.keys(this.signatures);
    const versions = versionChoices(this.one.name);
    this.bar.replaceChildren(...[versions.length > 2 && select("Version", versions, (value) => this.choose(value), this.which),
      names.length > 1 && select("Signature", names.map((name) => [name]), (name) => this.sign(name), this.signature), button("Example", () => this.example())].filter(Boolean));
    this.build();
  }

  async choose(which) {
    this.which = which;
    await this.read().catch((error) => this.caller.fail(error.message));
  }

  sign(name) {
    this.signature = name;
    this.build();
  }

  get inputs() {
    return Object.entries(this.signatures[this.signature]?.inputs ?? {});
  }

  build() {
    this.values = {};
    this.fields = this.inputs.map(([name, tensor]) => fieldFor(name, tensor, (value) => this.set(name, value)));
    this.form.replaceChildren(...this.fields.map((field) => field.element));
    this.example();
    const outputs = Object.entries(this.signatures[this.signature]?.outputs ?? {}).map(([name, tensor]) => `${name}: ${tell(tensor)}`);
    this.form.append(make("p", { className: "soft wide", textContent: `answers ${outputs.join(", ")}` }));
  }

  /** Values that the signature takes, in the fields and in the body. */
  example() {
    const given = this.signature === "serving_default" ? this.one.body?.inputs : undefined, one = this.inputs.length === 1;
    this.inputs.forEach(([name, tensor], index) => {
      const value = given !== undefined ? (one ? given : given[name]) : exampleOf(tensor);
      this.values[name] = value;
      this.fields[index].fill(value);
    });
    this.write();
  }

  set(name, value) {
    this.values[name] = value;
    this.write();
  }

  write() {
    const names = Object.keys(this.values), inputs = names.length === 1 ? this.values[names[0]] : this.values;
    const text = JSON.stringify({ ...(this.signature === "serving_default" ? {} : { signature_name: this.signature }), inputs });
    this.body.value = text;
    this.code.soon();
  }

  async send() {
    const body = this.body.value;
    const found = await this.caller.run((signal) => ask(this.url, { page: false, method: "POST", body, signal, headers: { "Content-Type": "application/json" } }));
    if (!found && this.caller.error.hidden) return;
    this.answerJson.hidden = !found;
    this.json.say(found ? JSON.stringify(found.answer) : "", found ? pretty(found.answer) : "");
    this.answers.replaceChildren(...(found ? drawAnswer(found.answer) : []));
    this.onanswer(found);
  }
}

function versionChoices(name) {
  const known = catalogue.models.find((one) => one.name === name);
  const labels = Object.entries(known?.labels ?? {}).map(([label, version]) => [`/labels/${path(label)}`, `${label} (${version})`]);
  return [["", "newest"], ...labels, ...(known?.versions ?? []).filter((one) => one.state === "AVAILABLE").map((one) => [`/versions/${one.version}`, `version ${one.version}`])];
}

const exampleOf = (tensor) => filled(shapeOf(tensor)?.map((size) => size ?? 1) ?? [], tensor.dtype === "DT_STRING" ? "hello" : tensor.dtype === "DT_BOOL" ? true : 1);

// --- fields --------------------------------------------------------------------------------------

/** A field for an input: {element, fill(value)}; `set(value)` is called when the user has changed it. */
function fieldFor(name, tensor, set) {
  const shape = shapeOf(tensor), label = `${name}: ${tell(tensor)}`;
  if (isPicture(name, tensor, shape)) return pictureField(label, tensor, shape, set);
  const row = shape?.slice(1) ?? null;
  if (shape && tensor.dtype !== "DT_STRING" && (shape.length <= 1 || (row.length === 1 && row[0] && row[0] <= MOST_CELLS))) return tableField(label, tensor, shape, set);
  if (shape && tensor.dtype === "DT_STRING" && shape.length <= 2 && (row.length === 0 || row[0] === 1)) return linesField(label, shape, set);
  return jsonField(label, set);
}

function isPicture(name, tensor, shape) {
  if (tensor.dtype === "DT_STRING") return shape?.length <= 1 && /image.*bytes|encoded|jpeg|png/i.test(name);
  return shape?.length === 4 && [1, 3, 4].includes(shape[3]) && (shape[1] ?? 99) > 4;
}

/** Rows of numbers: typed, or pasted from a spreadsheet or CSV. */
function tableField(label, tensor, shape, set) {
  const columns = shape.length === 2 ? shape[1] : 1, scalar = shape.length === 0;
  const area = make("textarea", { rows: columns > 1 ? 4 : 2, spellcheck: false, placeholder: columns > 1 ? `${columns} numbers a row, as in CSV` : "a number a line" });
  const note = make("small", { className: "warning", role: "status" });
  const read = () => {
    const rows = area.value.split(/\r?\n/).map((line) => line.trim()).filter(Boolean).map((line) => line.split(/[,;\t ]+/).filter(Boolean));
    const bad = rows.flat().find((cell) => !isNumber(cell, tensor.dtype));
    const wrong = rows.findIndex((cells) => cells.length !== columns);
    note.textContent = bad !== undefined ? `“${bad}” is no ${typeOf(tensor)}` : wrong >= 0 ? `Row ${wrong + 1} has ${rows[wrong].length} values, expected ${columns}` : "";
    const values = rows.map((cells) => (shape.length === 2 ? cells.map(toNumber) : toNumber(cells[0])));
    set(scalar ? values[0] : values);
  };
  area.oninput = read;
  return {
    element: make("label", { className: columns > 1 ? "wide" : "" }, label, area, note),
    fill(value) {
      area.value = (shape.length === 2 ? value : [value].flat()).map((cells) => [cells].flat().join(", ")).join("\n");
      note.textContent = "";
    },
  };
}

const toNumber = (text) => (/^(true|false)$/i.test(text) ? text.toLowerCase() === "true" : Number(text));

function isNumber(text, dtype) {
  if (dtype === "DT_BOOL") return /^(true|false|0|1)$/i.test(text);
  return text !== "" && !Number.isNaN(Number(text)) && (!INTEGERS.test(dtype) || Number.isInteger(Number(text)));
}

function linesField(label, shape, set) {
  const area = make("textarea", { rows: 3, placeholder: "a text a line" });
  area.oninput = () => {
    const lines = area.value.split("\n");
    set(shape.length === 2 ? lines.map((line) => [line]) : shape.length ? lines : area.value);
  };
  return { element: make("label", { className: "wide" }, label, area), fill: (value) => (area.value = [value].flat(3).join("\n")) };
}

function jsonField(label, set) {
  const area = make("textarea", { rows: 4, spellcheck: false }), note = make("small", { className: "warning", role: "status" });
  area.oninput = () => {
    try {
      set(JSON.parse(area.value));
      note.textContent = "";
    } catch (error) {
      note.textContent = error.message;
    }
  };
  return { element: make("label", { className: "wide" }, `${label}, as JSON`, area, note), fill: (value) => (area.value = JSON.stringify(value)) };
}

const RANGES = { "0..255": [1, 0], "0..1": [1 / 255, 0], "-1..1": [2 / 255, -1] };

/** A picture brought to the tensor's size, its numbers in the range that the user says; strings take the file. */
function pictureField(label, tensor, shape, set) {
  const whole = tensor.dtype === "DT_STRING" || INTEGERS.test(tensor.dtype) || tensor.dtype === "DT_UINT8";
  const canvas = make("canvas", { width: 0, height: 0 }), note = make("small", { role: "status" });
  canvas.style.maxWidth = "12rem";
  let bitmap = null, range = whole ? "0..255" : "0..1";
  const write = () => bitmap && set(pixels(bitmap, canvas, shape, RANGES[range], whole));
  const take = async ([file]) => {
    try {
      if (tensor.dtype === "DT_STRING") set({ b64: await toBase64(file) });
      bitmap = tensor.dtype === "DT_STRING" ? null : await createImageBitmap(file);
      write();
      note.textContent = file.name ?? "";
    } catch {
      note.textContent = "The browser cannot read this picture.";
    }
  };
  const ranges = whole ? null : select("Numbers", Object.keys(RANGES).map((one) => [one]), (value) => {
    range = value;
    write();
  }, range);
  return { element: make("div", { className: "wide", role: "group", "aria-label": label }, label, dropZone("Choose a picture", take, { accept: "image/*", extra: [ranges, canvas, note].filter(Boolean) })), fill: () => (note.textContent = "no picture yet: an example of one colour") };
}

function pixels(bitmap, canvas, [, tall, wide, channels], [scale, offset], whole) {
  Object.assign(canvas, { width: wide ?? bitmap.width, height: tall ?? bitmap.height });
  const on = canvas.getContext("2d", { willReadFrequently: true });
  on.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const { data } = on.getImageData(0, 0, canvas.width, canvas.height);
  const value = (byte) => (whole ? byte : Number((byte * scale + offset).toFixed(4)));
  const grey = (at) => Math.round(0.299 * data[at] + 0.587 * data[at + 1] + 0.114 * data[at + 2]);
  const rows = Array.from({ length: canvas.height }, (_, y) => Array.from({ length: canvas.width }, (_, x) => {
    const at = 4 * (y * canvas.width + x);
    return channels === 1 ? [value(grey(at))] : Array.from({ length: channels }, (_, c) => value(data[at + c]));
  }));
  return [rows];
}

// --- the answer ----------------------------------------------------------------------------------

/** The answer as a table and, where it is one, as a chart. */
export function drawAnswer(answer) {
  const outputs = answer?.outputs ?? answer?.predictions;
  if (outputs === undefined) return [];
  const named = isPlainObject(outputs) ? outputs : Array.isArray(outputs) && isPlainObject(outputs[0]) ? turn(outputs) : { output: outputs };
  return Object.entries(named).flatMap(([name, value]) => drawOutput(name, value)).filter(Boolean);
}

const isPlainObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value) && !("b64" in value);

const turn = (rows) => Object.fromEntries(Object.keys(rows[0]).map((name) => [name, rows.map((row) => row[name])]));

function drawOutput(name, value) {
  const rows = Array.isArray(value) ? value : [value];
  if (!rows.length || rows.length > 1000 || rows.some((row) => Array.isArray(row) && (row.length > 1000 || row.some((cell) => typeof cell === "object")))) return [];
  const cells = rows.map((row) => [row].flat()), wide = Math.max(...cells.map((row) => row.length));
  const chart = chartOf(rows, cells);
  const shown = table(["row", ...Array.from({ length: Math.min(wide, 100) }, (_, index) => (wide > 1 ? index : name))], cells.map((row, index) => [index, ...row.slice(0, 100).map(String)]), { label: `${name} as a table` });
  return [make("h3", { textContent: name }), chart, details("As a table", shown)];
}

function chartOf(rows, cells) {
  const numbers = cells.length === 1 ? cells[0] : cells.every((row) => row.length === 1) ? cells.map(([one]) => one) : null;
  if (!numbers || numbers.length > 40 || !numbers.every((one) => typeof one === "number" && one >= 0)) return cells.length === 1 && cells[0].length === 1 ? make("p", { textContent: String(cells[0][0]) }) : null;
  const most = Math.max(...numbers);
  return bars(Object.fromEntries(numbers.map((one, index) => [String(index), one])), { most: most <= 1 ? 1 : most });
}
