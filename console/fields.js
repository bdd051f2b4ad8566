// Fields of typed values: how a text is read as a number, list or object, and how a value is written.

import {make, option} from "./dom.js";

const numberOr = (text) => (text.trim() === "" || Number.isNaN(Number(text)) ? text : Number(text));

/** `cat: 0.5, dog: 0.7` as an object of numbers. */
function readMap(text) {
	return Object.fromEntries(text.split(",").map((part) => {
		const at = part.lastIndexOf(":");
		return [part.slice(0, at).trim(), numberOr(part.slice(at + 1).trim())];
	}));
}

/** A field's text as a value; commas divide lists. Bad numbers are sent as text. */
function read(kind, text) {
	if (text.trim() === "") return null;
	if (kind === "number" || kind === "integer") return numberOr(text);
	if (kind === "boolean") return text === "true";
	if (kind === "map") return readMap(text);
	const parts = text.split(",").map((part) => part.trim());
	return kind === "strings" ? parts : kind === "numbers" ? parts.map(numberOr) : text;
}

function write(kind, value) {
	if (value == null) return "";
	return kind === "map" ? Object.entries(value).map(([name, one]) => `${name}: ${one}`).join(", ") : String(value);
}

/** A field of a kind, or of a list: an element whose `read()` is the value, null if it is empty. */
export function field(kind, value, properties = {}) {
	const text = write(kind, value), number = kind === "number" || kind === "integer", list = kind === "boolean" ? [["true", "yes"], ["false", "no"]] : kind;
	const all = Array.isArray(list) && ["", ...(text && !list.flat().includes(text) ? [text] : []), ...list];
	const element = all ? make("select", properties, all.map((one) => option(...[one].flat())))
		: make("input", {type: number ? "number" : kind === "date" ? kind : "text", ...(number && {step: kind === "integer" ? 1 : "any"}), ...properties});
	element.value = text;
	element.read = () => read(kind, element.value);
	return element;
}
