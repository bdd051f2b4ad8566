// Building blocks: elements, formats, copying, files. Text is always text, never markup.

export const $ = (selector, root = document) => root.querySelector(selector);

/** An element, as `make("p.soft", {id}, "text")`: tag and classes, properties or attributes, children. */
export function make(name, ...given) {
	const [tag, ...classes] = name.split("."), element = document.createElement(tag);
	if (tag === "button") element.type = "button";
	if (classes.length) element.className = classes.join(" ");
	for (const [key, value] of Object.entries(given[0]?.constructor === Object ? given.shift() : {})) {
		if (value == null) continue;
		if (/^(aria|data)-/.test(key)) element.setAttribute(key, value);
		else if (key === "label" && tag !== "optgroup") element.ariaLabel = value;
		else element[key] = value;
	}
	element.append(...wanted(given));
	return element;
}

const wanted = (children) => children.flat(2).filter((child) => child != null && child !== false && child !== "");

/** Replace children; a focused list keeps the focus, by its label. */
export function fill(element, ...children) {
	const held = document.activeElement, label = element.contains(held) && held.matches("select") && held.parentElement.firstChild.data;
	element.replaceChildren(...wanted(children));
	if (label) [...element.querySelectorAll("select")].find((list) => list.parentElement.firstChild.data === label)?.focus();
}

export const bar = (...children) => make("div.bar", ...children);

export function draw(name, attributes = {}, ...children) {
	const element = document.createElementNS("http://www.w3.org/2000/svg", name);
	for (const [key, value] of Object.entries(attributes)) if (value != null) element.setAttribute(key, value);
	element.append(...children);
	return element;
}

export const link = (href, text) => make("a", {href}, text);

export const option = (value, text = value, selected) => make("option", {value, selected}, text);

export function select(label, options, onchange, value) {
	const list = make("select", {onchange: () => onchange(list.value)}, options.map((one) => option(...[one].flat())));
	if (value != null) list.value = value;
	return make("label", `${label} `, list);
}

export const search = (label, oninput, placeholder = "Search…", properties) => make("input", {type: "search", placeholder, label, oninput, ...properties});

export const fits = (text, sought) => text.toLowerCase().includes(sought.trim().toLowerCase());

export const several = (names, most) => names.slice(0, most).join(", ") + (names.length > most ? ` and ${names.length - most} more` : "");

export const area = (properties) => make("textarea", {spellcheck: false, ...properties});

export const range = (value, oninput, step = 0.01) => make("input", {type: "range", min: 0, max: 1, step, value, oninput});

export const status = (name = "span.soft") => make(name, {role: "status"});

export function drawOn(canvas, bitmap, width = bitmap.width, height = bitmap.height) {
	Object.assign(canvas, {width, height});
	const on = canvas.getContext("2d");
	on.imageSmoothingEnabled = !bitmap.pixelated;
	on.drawImage(bitmap, 0, 0, width, height);
	return canvas;
}

export const shownBitmap = (bitmap, label) => drawOn(make("canvas.whole", {role: "img", label}), bitmap);

export const toBlob = (canvas, ...kind) => new Promise((done) => canvas.toBlob(done, ...kind));

/** The picture of an answer; a preview tells the full size. */
export async function bitmapOf(asked) {
	const response = await asked, [width, height] = response.headers.get("X-Picture-Size")?.split("x").map(Number) ?? [];
	return Object.assign(await createImageBitmap(await response.blob()), width && {full: {width, height}});
}

export const sizeOf = ({full, width, height}) => full ?? {width, height};

export const heading = (one) => make("h2", {tabIndex: -1}, dot(one.state), ` ${one.name} `);

export const notReady = ({state, reason}) => state === "failed" ? make("p.error", reason) : make("p.empty", state === "empty" ? "It has no versions." : "It is being loaded.");

export const withoutEnding = (name) => name.replace(/\.\w+$/, "");

export const button = (text, onclick, properties) => make("button", {onclick, ...properties}, text);

/** Rows with keys stay the same rows when they are redrawn. */
export function table(head, rows, label, keys = []) {
	const heads = head.map((one) => make("th", one));
	const body = rows.map((row, at) => make("tr", {"data-key": keys[at]}, row.map((one) => make("td", one))));
	return make("div.scroll", {tabIndex: 0, role: "region", label}, make("table", make("thead", make("tr", heads)), make("tbody", body)));
}

export const tiles = (label, values) => make("dl.tiles", {label}, Object.entries(values).map(([title, text]) => make("div", {"data-key": title}, make("dt", title), make("dd", text))));

export const details = (summary, ...children) => make("details", make("summary", summary), ...children);

export const dot = (state) => make("span", {className: `dot ${state}`, role: "img", label: state, title: state});

export const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

export const show = (value, unit = "", digits = 0) => (value == null ? "–" : value.toFixed(digits) + unit);

export function milliseconds(value) {
	if (value == null) return "–";
	return value >= 10000 ? `${(value / 1000).toFixed(1)} s` : `${value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)} ms`;
}

export function duration(seconds) {
	if (seconds == null) return "–";
	const [days, hours, minutes] = [86400, 3600, 60].map((one) => Math.floor(seconds / one));
	if (days) return `${days} d ${hours % 24} h`;
	if (hours) return `${hours} h ${minutes % 60} min`;
	return minutes ? `${minutes} min` : `${Math.floor(seconds)} s`;
}

export function bytes(value) {
	if (value == null) return "–";
	for (const [unit, size] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) if (value >= size) return `${(value / size).toFixed(1)} ${unit}`;
	return `${value} B`;
}

/** JSON to read: indented, rows of numbers on one line each; a long text is cut. */
export function pretty(value) {
	const most = 200000, text = JSON.stringify(value, (_, one) => (one?.length > 400 && typeof one === "string" ? `${one.slice(0, 80)}… (${one.length} characters)` : one), 1);
	const read = text.replace(/\[\n[-+\d.eE,\s]*\n\s*\]/g, (numbers) => numbers.replace(/\s+/g, "").replaceAll(",", ", "));
	return read.length > most ? `${read.slice(0, most)}\n… ${read.length - most} more characters: copy or download has all` : read;
}

export function copyButton(text) {
	const made = button("Copy", async () => {
		made.textContent = (await copied(text())) ? "Copied" : "The browser does not let the page copy.";
		setTimeout(() => (made.textContent = "Copy"), 1500);
	});
	return made;
}

/** Without https a browser has no clipboard. */
async function copied(text) {
	if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text).then(() => true, () => false);
	const area = make("textarea.away", {value: text});
	document.body.append(area);
	area.select();
	const done = document.execCommand("copy");
	area.remove();
	return done;
}

export function download(name, content, type = "application/json") {
	const blob = content instanceof Blob ? content : new Blob([content], {type});
	const link = make("a", {href: URL.createObjectURL(blob), download: name});
	link.click();
	setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

export function textBlock(label, file) {
	const text = make("pre", {tabIndex: 0, role: "region", label});
	let whole = "";
	const saving = file && button("Download", () => download(file(), whole, "text/plain"));
	const block = make("div.block", {hidden: true}, bar(copyButton(() => whole), saving), text);
	const say = (value, shown = value) => {
		whole = value;
		text.textContent = shown;
		block.hidden = !shown;
	};
	/** A text as it is, any other value as JSON; nothing for null. */
	const tell = (value) => (value == null || typeof value === "string" ? say(value ?? "") : say(JSON.stringify(value), pretty(value)));
	return Object.assign(block, {say, tell});
}

// By default a dropped file replaces the page.
for (const kind of ["dragover", "drop"]) addEventListener(kind, (event) => event.dataTransfer?.types.includes("Files") && event.preventDefault());

/** Pasted in Try: into the zone with the keyboard, else the first. */
addEventListener("paste", ({target, clipboardData}) => target.matches("textarea, input:not([type=file], [type=range], [type=checkbox])") || (target.closest("#panel .drop") ?? $("#panel .drop"))?.give(clipboardData.files));

export function dropZone(text, take, {accept, multiple, extra} = {}) {
	const give = (files) => files.length && take([...files]);
	const input = make("input", {type: "file", accept, multiple}), zone = make("div.drop", {give}, make("label.button", text, input), extra);
	input.onchange = () => {
		give(input.files);
		input.value = "";
	};
	zone.ondragover = zone.ondragleave = zone.ondrop = ({type, dataTransfer}) => {
		zone.classList.toggle("over", type === "dragover");
		if (type === "drop") give(dataTransfer.files);
	};
	return zone;
}
