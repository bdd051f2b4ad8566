// One picture and one question about it.

import { ask, catalogue, path } from "./api.js";
import { select, toBase64 } from "./dom.js";

/** Which version a call is for, as a picker: the deployment's own, a number or a label. */
export function versionPicker(model, onchange, first = "as configured") {
  const known = catalogue.models.find((one) => one.name === model) ?? { versions: [], labels: {} };
  const there = known.versions.filter((one) => one.state === "AVAILABLE").map((one) => [`version=${one.version}`, `version ${one.version}`]);
  const labels = Object.entries(known.labels).map(([label, version]) => [`version_label=${encodeURIComponent(label)}`, `${label} (${version})`]);
  return there.length + labels.length > 1 ? select("Version", [["", first], ...labels, ...there], onchange) : null;
}

/** Ask a deployment; a Response. */
export async function predict(id, blob, { routines = [], query = "", signal, verb = "predict" } = {}) {
  const body = JSON.stringify({ image_type: "base64", data: await toBase64(blob), routines });
  return ask(`${path(id)}/${verb}${query ? `?${query}` : ""}`, { page: false, method: "POST", body, signal, headers: { "Content-Type": "application/json" } });
}

/** The picture as the browser shows it; where it cannot (TIFF), as the server reads it. */
export async function readPicture(id, blob) {
  try {
    return await createImageBitmap(blob);
  } catch {
    return createImageBitmap(await (await predict(id, blob, { verb: "preview" })).blob());
  }
}

export function drawThumb(canvas, bitmap, most = 240) {
  const shrink = Math.min(1, most / Math.max(bitmap.width, bitmap.height));
  Object.assign(canvas, { width: Math.max(1, bitmap.width * shrink), height: Math.max(1, bitmap.height * shrink) });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
}

