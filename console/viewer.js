// A picture and its detections: zoom, pan, full screen; boxes, masks with holes, labels.

import {COLOURS} from "./charts.js";
import {bar, button, clamp, draw, drawOn, fill, make, sizeOf} from "./dom.js";

export const colourOf = (tag) => COLOURS[Math.abs(tag.id) % COLOURS.length];

const ringsOf = (one) => one.contours ?? (one.contour ? [one.contour] : []);

/** Left, top, right and bottom of a prediction, in 0..1, or in pixels of a picture. */
export function cornersOf({bound}, width = 1, height = 1) {
	const xs = bound.map(([x]) => x * width), ys = bound.map(([, y]) => y * height);
	return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
}

/** name -> {tag, count} */
export function countsOf(predictions) {
	const counts = new Map();
	for (const {tag} of predictions) counts.set(tag.name, {tag, count: (counts.get(tag.name)?.count ?? 0) + 1});
	return counts;
}

const MOST_LABELS = 0.15; // share of the picture for labels: of 300 boxes the best get one

/** Where a label covers no other: above, below or inside its box; null without room. */
function placeLabel([left, top, right, bottom], [wide, tall], [far, deep], taken, always) {
	const spots = [[left, top - tall], [left, bottom], [right - wide, top - tall], [left, top], [right - wide, bottom - tall]]
		.map(([x, y]) => [clamp(x, 0, Math.max(0, far - wide)), clamp(y, 0, Math.max(0, deep - tall))]).map(([x, y]) => [x, y, x + wide, y + tall]);
	const spot = spots.find((one) => !taken.some((other) => one[0] < other[2] && other[0] < one[2] && one[1] < other[3] && other[1] < one[3])) ?? (always ? spots[0] : null);
	if (spot) taken.push(spot);
	return spot;
}

const roomFor = (area, tall) => Math.max(3, (MOST_LABELS * area) / (5 * tall * tall));

/** A name, isolated so that right-to-left text does not move the number. */
export const apart = (name) => `\u2068${name}\u2069`;

const titleOf = ({tag, confidence}) => `${apart(tag.name)} ${confidence.toFixed(2)}`;

const pen = make("canvas").getContext("2d");
pen.font = "600 12px system-ui, sans-serif";

/** Black or white, the more readable on a colour (WCAG's relative luminance). */
function inkOn(colour) {
	const [r, g, b] = [1, 3, 5].map((at) => (Number.parseInt(colour.slice(at, at + 2), 16) / 255) ** 2.2);
	return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.18 ? "#000" : "#fff";
}

/**
 * A viewer of one picture. `show(bitmap)`, then `mark(predictions)`: [{bound, contour(s), tag, confidence}];
 * with a second list they are divided: the first left of the divider, the second right.
 */
export class Viewer {
	constructor() {
		this.canvas = make("canvas");
		this.overlay = draw("svg", {"aria-hidden": "true"});
		this.divider = make("div.divider", {hidden: true});
		this.frame = make("div.viewer", {role: "img", label: "No picture yet", tabIndex: 0}, this.canvas, this.overlay, this.divider);
		const tools = bar({role: "group", "aria-label": "View"},
			button("−", () => this.zoom(1 / 1.4), {ariaLabel: "Zoom out"}), button("+", () => this.zoom(1.4), {ariaLabel: "Zoom in"}),
			button("Fit", () => this.fit()), button("Full screen", () => (document.fullscreenElement ? document.exitFullscreen() : this.frame.requestFullscreen?.())));
		this.element = make("div", this.frame, tools);
		Object.assign(this, {opacity: 0.35, lists: [[]], strong: null, view: {scale: 1, x: 0, y: 0}, fitted: true, pointers: new Map(), marked: new Map()});
		this.listen();
		new ResizeObserver(() => (this.fitted ? this.fit() : this.draw())).observe(this.frame);
	}

	show(bitmap) {
		const {width, height} = this.canvas, fresh = width !== bitmap.width || height !== bitmap.height;
		drawOn(this.canvas, bitmap);
		this.frame.style.aspectRatio = bitmap.width / bitmap.height;
		if (fresh) this.fit();
	}

	mark(left, right, share) {
		this.lists = right ? [left, right] : [left];
		this.share = share;
		const counts = [...countsOf(left)].slice(0, 20).map(([name, {count}]) => `${count} ${name}`);
		this.frame.ariaLabel = counts.length ? `The picture, with ${counts.join(", ")}` : "The picture";
		this.draw();
	}

	emphasise(one) {
		if (this.strong === one) return;
		this.strong = one;
		this.draw();
	}

	fit() {
		const {clientWidth: wide, clientHeight: tall} = this.frame, {width, height} = this.canvas;
		const scale = Math.min(wide / width, tall / height);
		this.look({scale, x: (wide - width * scale) / 2, y: (tall - height * scale) / 2}, true);
	}

	zoom(factor, x = this.frame.clientWidth / 2, y = this.frame.clientHeight / 2) {
		const scale = clamp(this.view.scale * factor, 0.01, 64), by = scale / this.view.scale;
		this.look({scale, x: x - (x - this.view.x) * by, y: y - (y - this.view.y) * by});
	}

	pan(right, down) {
		const {scale, x, y} = this.view;
		this.look({scale, x: x + right, y: y + down});
	}

	look(view, fitted = false) {
		Object.assign(this, {view, fitted});
		this.draw();
	}

	listen() {
		const {frame, pointers} = this;
		frame.onwheel = (event) => {
			if (!event.ctrlKey && !event.metaKey && this.fitted && !document.fullscreenElement) return; // the page scrolls
			event.preventDefault();
			this.zoom(1.0015 ** -event.deltaY, ...this.placeOf(event));
		};
		frame.onpointerdown = (event) => {
			pointers.set(event.pointerId, event);
			if (!this.fitted || pointers.size > 1) frame.setPointerCapture(event.pointerId);
		};
		frame.onpointerup = frame.onpointercancel = (event) => pointers.delete(event.pointerId);
		frame.onpointermove = frame.onclick = (event) => this.moved(event);
		frame.onpointerleave = (event) => {
			pointers.delete(event.pointerId); // uncaptured, its release outside is missed
			this.onHover(null);
		};
		frame.ondblclick = (event) => (this.fitted ? this.zoom(2.5, ...this.placeOf(event)) : this.fit());
		frame.onkeydown = (event) => {
			if (event.ctrlKey || event.metaKey || event.altKey) return;
			const step = {ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40]}[event.key];
			if (step && !this.fitted) this.pan(...step);
			else if (event.key === "+" || event.key === "=") this.zoom(1.4);
			else if (event.key === "-") this.zoom(1 / 1.4);
			else if (event.key === "0") this.fit();
			else return;
			event.preventDefault();
		};
	}

	placeOf({clientX, clientY}) {
		const {left, top} = this.frame.getBoundingClientRect();
		return [clientX - left, clientY - top];
	}

	moved(event) {
		const before = this.pointers.get(event.pointerId);
		if (!before) return this.onHover(this.marked.get(event.target.closest(".box")) ?? null);
		this.pointers.set(event.pointerId, event);
		if (this.pointers.size === 2) {
			const [one, other] = this.pointers.values(), still = one === event ? other : one;
			const far = (a) => Math.hypot(a.clientX - still.clientX, a.clientY - still.clientY) || 1;
			this.zoom(far(event) / far(before), ...this.placeOf(still));
		} else if (!this.fitted) this.pan(event.clientX - before.clientX, event.clientY - before.clientY);
	}

	draw() {
		this.waits ??= requestAnimationFrame(() => this.drawNow());
	}

	drawNow() {
		this.waits = null;
		const {scale, x, y} = this.view;
		this.canvas.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
		this.canvas.style.imageRendering = scale > 3 ? "pixelated" : "auto";
		this.frame.style.touchAction = this.fitted ? "pan-y" : "none";
		this.marked = new Map();
		const left = 100 * this.share;
		this.divider.hidden = this.share == null;
		this.divider.style.left = `${left}%`;
		fill(this.overlay, this.lists.map((list, index) => this.layer(list, index ? `0 0 0 ${left}%` : `0 ${100 - left}% 0 0`)));
	}

	layer(list, cut) {
		const layer = draw("g"), taken = [];
		if (this.share != null) layer.style.clipPath = `inset(${cut}) view-box`;
		const placed = list.filter((one) => one.bound).map((one) => ({one, box: this.boxOf(one)}));
		layer.append(...placed.map((each) => this.shape(each)).reverse()); // the first is the best: on top
		for (const each of placed) this.label(each, taken, layer); // above all boxes
		return layer;
	}

	get size() {
		return [this.canvas.width * this.view.scale, this.canvas.height * this.view.scale];
	}

	boxOf(one) {
		const {x, y} = this.view;
		return cornersOf(one, ...this.size).map((place, at) => place + (at % 2 ? y : x));
	}

	shape({one, box: [left, top, right, bottom]}) {
		const {x, y} = this.view, [wide, tall] = this.size, colour = colourOf(one.tag), rings = ringsOf(one);
		const group = draw("g", {class: this.strong ? `box ${this.strong === one ? "strong" : "faint"}` : "box"});
		if (rings.length) {
			const d = rings.map((ring) => `M${ring.map(([px, py]) => `${(x + px * wide).toFixed(1)},${(y + py * tall).toFixed(1)}`).join("L")}Z`).join("");
			const path = draw("path", {d, stroke: colour});
			Object.assign(path.style, {fill: colour, fillOpacity: this.opacity});
			group.append(path);
		}
		group.append(draw("rect", {class: "frame", x: left, y: top, width: Math.max(1, right - left), height: Math.max(1, bottom - top), stroke: colour, "stroke-dasharray": rings.length ? "4 4" : null}));
		this.marked.set(group, one);
		return group;
	}

	/** A label of constant size; if it covers another, shown only on hover. */
	label({one, box}, taken, layer) {
		const [left, top, right, bottom] = box;
		const text = titleOf(one), wide = pen.measureText(text).width + 10, tall = 17, strong = this.strong === one;
		const {clientWidth: far, clientHeight: deep} = this.frame, [across, down] = this.size;
		if (taken.length >= roomFor(Math.min(far, across) * Math.min(deep, down), tall)) return;
		if (right < 0 || bottom < 0 || left > far || top > deep || (this.strong && !strong)) return;
		const spot = placeLabel(box, [wide, tall], [far, deep], taken, strong);
		if (!spot) return;
		const colour = colourOf(one.tag);
		layer.append(draw("g", {class: "label"}, draw("rect", {x: spot[0], y: spot[1], width: wide, height: tall, fill: colour, rx: 3}), draw("text", {x: spot[0] + 5, y: spot[1] + 13, fill: inkOn(colour)}, text)));
	}
}

/** The picture with its objects at its own size, to save; without labels a thumbnail. */
export function paint(bitmap, predictions, opacity = 0.35, labels = true) {
	const {width, height} = sizeOf(bitmap), canvas = drawOn(make("canvas"), bitmap, width, height), on = canvas.getContext("2d");
	const size = Math.max(12, Math.round(Math.sqrt(width * height) / 40)), taken = [];
	Object.assign(on, {lineWidth: labels ? Math.max(2, size / 8) : Math.max(width, height) / 120, font: `600 ${size}px system-ui, sans-serif`, textBaseline: "top"});
	const boxed = predictions.filter((one) => one.bound).map((one) => ({one, colour: colourOf(one.tag), box: cornersOf(one, width, height)}));
	for (const {one, colour, box: [left, top, right, bottom]} of boxed.toReversed()) {
		const rings = ringsOf(one);
		on.strokeStyle = on.fillStyle = colour;
		on.beginPath();
		for (const ring of rings) ring.forEach(([x, y], index) => on[index ? "lineTo" : "moveTo"](x * width, y * height));
		on.globalAlpha = opacity;
		on.fill("evenodd");
		on.globalAlpha = 1;
		if (rings.length) on.stroke();
		else on.strokeRect(left, top, right - left, bottom - top);
	}
	for (const {one, colour, box} of labels ? boxed.slice(0, roomFor(width * height, size)) : []) {
		const text = titleOf(one), wide = on.measureText(text).width + 6;
		const at = placeLabel(box, [wide, size * 1.3], [width, height], taken);
		if (!at) continue;
		on.fillStyle = colour;
		on.fillRect(at[0], at[1], wide, size * 1.3);
		on.fillStyle = inkOn(colour);
		on.fillText(text, at[0] + 3, at[1] + size * 0.15);
	}
	return canvas;
}
