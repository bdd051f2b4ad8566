// One picture and one question about it.

import {catalogue, path, post} from "./api.js";
import {bitmapOf, drawOn, select, toBase64} from "./dom.js";

/** The versions and labels of a model, where there are several: of a URL's query, or of its path. */
export function versionPicker(model, onchange, first = "as configured", [number, name] = ["version=", "version_label="], value = "") {
	const known = catalogue.models.find((one) => one.name === model) ?? {versions: [], labels: {}};
	const there = known.versions.filter((one) => one.state === "AVAILABLE").map(({version}) => [number + version, `version ${version}`]);
	const labels = Object.entries(known.labels).map(([label, version]) => [name + path(label), `${label} (${version})`]);
	return there.length + labels.length > 1 ? select("Version", [["", first], ...labels, ...there], onchange, value) : null;
}

export async function predict(id, blob, {routines = [], query = "", signal, verb = "predict"} = {}) {
	const body = JSON.stringify({image_type: "base64", data: await toBase64(blob), routines});
	return post(`${path(id)}/${verb}${query ? `?${query}` : ""}`, body, signal);
}

/** The picture as the browser shows it; where it cannot (TIFF), as the server reads it. */
export async function readPicture(id, blob) {
	try {
		return await createImageBitmap(blob);
	} catch {
		return bitmapOf(predict(id, blob, {verb: "preview"}));
	}
}

export function drawThumb(canvas, bitmap, most = 240) {
	const shrink = Math.min(1, most / Math.max(bitmap.width, bitmap.height));
	drawOn(canvas, bitmap, ...[bitmap.width, bitmap.height].map((side) => Math.max(1, Math.floor(side * shrink))));
}

