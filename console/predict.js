// One picture and a request for it.

import {catalogue, onCatalogue, path, post, toBase64} from "./api.js";
import {bitmapOf, drawOn, make, option, select} from "./dom.js";
import {morph} from "./live.js";

/** A model's versions and labels, if there are several, for a URL's query or path. */
export function versionPicker(model, onchange, first = "as configured", [number, name] = ["version=", "version_label="], value = "") {
	const picker = select("Version", [], onchange), list = picker.lastChild;
	const draw = (chosen) => {
		const {versions = [], labels = {}} = catalogue.models.find((one) => one.name === model) ?? {};
		const there = versions.filter((one) => one.state === "AVAILABLE").map(({version}) => option(number + version, `version ${version}`));
		const named = Object.entries(labels).map(([label, version]) => option(name + path(label), `${label} (${version})`));
		morph(list, make("select", option("", first), named, there));
		list.value = chosen;
		if (list.value !== chosen) list.append(option(chosen, `${decodeURIComponent(chosen.split(/[=/]/).at(-1))} (gone)`, true));
		picker.hidden = list.options.length < 3 && !chosen;
	};
	draw(value);
	const end = onCatalogue(() => (picker.isConnected ? draw(list.value) : end()));
	return picker;
}

export async function predict(id, blob, {routines = [], query = "", signal, verb = "predict"}) {
	const body = JSON.stringify({image_type: "base64", data: await toBase64(blob), routines});
	return post(`${path(id)}/${verb}${query ? `?${query}` : ""}`, body, signal);
}

/** The picture decoded by the browser or, if it cannot (TIFF), the server. */
export const readPicture = (id, blob) => createImageBitmap(blob).catch(() => bitmapOf(predict(id, blob, {verb: "preview", query: "whole=1"})));

export function drawThumb(canvas, bitmap) {
	const shrink = Math.min(1, 240 / Math.max(bitmap.width, bitmap.height));
	drawOn(canvas, bitmap, ...[bitmap.width, bitmap.height].map((side) => Math.max(1, Math.floor(side * shrink))));
}
