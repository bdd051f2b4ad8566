// A picture's detections: slider, chips by class, list of objects, bars, exports.

import {bars, swatch} from "./charts.js";
import {bar, button, download, fill, make, range, sizeOf, status, toBlob, withoutEnding} from "./dom.js";
import {morph} from "./live.js";
import {apart, colourOf, cornersOf, countsOf, paint} from "./viewer.js";

const MOST_LISTED = 500, MOST_BARS = 5;

export class Result {
	constructor(viewer, onchange) {
		Object.assign(this, {viewer, onchange, hidden: new Set(), rows: new Map()});
		this.slider = range(0, () => this.draw());
		this.slider.className = "confidence";
		this.value = make("span");
		this.opacity = range(0.35, () => this.fade(), 0.05);
		this.masks = make("label", {hidden: true}, "Masks ", this.opacity);
		this.count = status("p.soft.shown");
		this.chips = make("div");
		this.list = make("ol.objects", {label: "Objects", onkeydown: (event) => this.step(event)});
		this.chart = make("div");
		this.warnings = make("div");
		this.saves = bar(button("PNG", () => savePicture(this.name, paint(this.bitmap, this.shown, this.viewer.opacity))), button("CSV", () => download(`${withoutEnding(this.name)}.csv`, csvOf([{name: this.name, predictions: this.shown, ...sizeOf(this.bitmap)}]), "text/csv")));
		this.element = make("div.result", bar(make("label", "Confidence from ", this.value, this.slider), this.masks), this.warnings, this.count, this.chips, this.list, this.chart, this.saves);
		viewer.onHover = (one) => this.point(one);
	}

	/** `again`: the camera's next picture, hidden classes stay hidden. */
	show(answer, bitmap, name, again) {
		Object.assign(this, {answer, bitmap, name});
		if (!again) this.hidden = new Set();
		fill(this.warnings, answer?.warnings?.map((text) => make("p.warning", text)));
		this.draw();
	}

	get least() {
		return Number(this.slider.value);
	}

	get confident() {
		return (this.answer?.predictions ?? []).filter((one) => one.confidence >= this.least);
	}

	get shown() {
		return this.confident.filter((one) => !this.hidden.has(one.tag.name));
	}

	draw() {
		const all = this.answer?.predictions, boxed = all?.some((one) => one.bound), shown = this.shown;
		this.value.textContent = this.least.toFixed(2);
		this.viewer.mark(boxed ? shown : []);
		this.masks.hidden = !all?.some((one) => one.contour);
		this.saves.hidden = !this.answer;
		this.count.textContent = this.tell(all, shown, boxed);
		this.drawChips(boxed);
		this.drawList(boxed ? shown : []);
		this.drawChart(boxed ? null : shown);
		this.onchange();
	}

	tell(all, shown, boxed) {
		if (!all) return "";
		if (!all.length) return "Nothing was found.";
		const best = all.reduce((one, other) => (other.confidence > one.confidence ? other : one));
		if (!this.confident.length) return `Nothing above ${this.least.toFixed(2)}; best: ${best.tag.name} ${best.confidence.toFixed(2)}.`;
		return boxed ? `${shown.length} of ${all.length} shown` : `${Math.min(MOST_BARS, shown.length)} of ${all.length} classes`;
	}

	drawChips(boxed) {
		const counts = countsOf(boxed ? this.confident : []);
		morph(this.chips, make("div.chips", {role: "group", label: "Classes: press to hide"}, [...counts].sort(([, one], [, other]) => other.count - one.count).slice(0, 60).map(([name, {tag, count}]) => make("button.chip", {"aria-pressed": String(!this.hidden.has(name)), "data-key": name, onclick: () => this.toggle(name)}, swatch(colourOf(tag)), `${apart(name)} ${count}`))));
	}

	toggle(name) {
		if (!this.hidden.delete(name)) this.hidden.add(name);
		this.draw();
	}

	drawList(shown) {
		this.rows = new Map();
		fill(this.list, shown.slice(0, MOST_LISTED).map((one) => {
			const on = () => this.emphasise(one), off = () => this.emphasise(null);
			const row = button("", on, {tabIndex: this.rows.size ? -1 : 0, onmouseenter: on, onmouseleave: off, onfocus: on, onblur: off});
			row.append(swatch(colourOf(one.tag)), one.tag.name, make("span.number", one.confidence.toFixed(3)));
			this.rows.set(one, row);
			return make("li", row);
		}), shown.length > MOST_LISTED && make("li.soft", `and ${shown.length - MOST_LISTED} more`));
	}

	emphasise(one) {
		this.rows.get(this.viewer.strong)?.classList.remove("strong");
		this.viewer.emphasise(one);
		this.rows.get(one)?.classList.add("strong");
	}

	/** The list is one stop of the Tab key: arrows move in it. */
	step(event) {
		const next = {ArrowDown: "nextSibling", ArrowUp: "previousSibling"}[event.key];
		if (next) event.preventDefault();
		event.target.parentElement[next]?.firstChild.focus?.();
	}

	/** Mark the row of a box, in the middle of the list: the page itself stays. */
	point(one) {
		const row = this.viewer.strong !== one && this.rows.get(one);
		this.emphasise(one);
		if (row) this.list.scrollTop += row.getBoundingClientRect().top - this.list.getBoundingClientRect().top - this.list.clientHeight / 2;
	}

	drawChart(classes) {
		const {histogram, avgPerClass} = this.answer ?? {}, counted = histogram?.counts ? byRange(histogram) : histogram?.classes ?? avgPerClass;
		const best = (classes ?? []).toSorted((one, other) => other.confidence - one.confidence).slice(0, MOST_BARS);
		fill(this.chart, best.length > 0 && bars(best.map((one) => [one.tag.name, one.confidence])), counted && bars(Object.entries(counted), Math.max(1e-9, ...Object.values(counted))));
	}

	fade() {
		this.viewer.opacity = Number(this.opacity.value);
		this.viewer.draw();
	}
}

export const savePicture = async (name, painted) => download(`${withoutEnding(name)}-seen.png`, await toBlob(painted));

function byRange({ranges, counts}) {
	return Object.fromEntries(Object.entries(counts).flatMap(([name, numbers]) => numbers.map((count, n) => [`${name} ≤ ${ranges[n]}`, count])));
}

/** Predictions as CSV (RFC 4180), boxes in pixels; spreadsheet formulas are quoted. */
export function csvOf(pictures) {
	const quote = (value) => {
		const text = String(value), safe = /^[=+\-@\t]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text;
		return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
	};
	const rows = pictures.flatMap(({name, predictions, width, height}) => predictions.map((one) => {
		const corners = one.bound ? cornersOf(one, width, height).map((place) => place.toFixed(2)) : ["", "", "", ""];
		return [name, one.tag.id, one.tag.name, one.confidence, ...corners];
	}));
	return [["picture", "class", "name", "confidence", "left", "top", "right", "bottom"], ...rows].map((row) => row.map(quote).join(",")).join("\r\n") + "\r\n";
}
