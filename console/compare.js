// One picture, two answers: a divider, the differences.

import {catalogue} from "./api.js";
import {Caller} from "./call.js";
import {bar, details, fill, make, range, select, table} from "./dom.js";
import {predict, versionPicker} from "./predict.js";
import {cornersOf} from "./viewer.js";

const SAME_PLACE = 0.5; // least intersection over union, as COCO and Pascal VOC match

export class Compare {
	constructor(panel) {
		Object.assign(this, {panel, without: ""});
		const ready = catalogue.deployments.filter((one) => one.state === "ready").map((one) => one.id);
		this.caller = new Caller(() => this.run(), "Compare");
		this.versions = make("span");
		this.slider = range(0.5, () => this.draw());
		this.result = make("div", {hidden: true}, make("label", "Divider ", this.slider), (this.list = make("div")));
		this.element = details("Compare with…", bar(select("Deployment", ready, (id) => this.choose(id), panel.one.id), this.versions,
			select("Routines", [["", "the same"], ["without", "without those of the request"]], (value) => (this.without = value)), this.caller.buttons), this.caller.error, this.result);
		this.element.ontoggle = () => this.element.open || (this.clear(), panel.result.draw());
		this.choose(panel.one.id);
	}

	choose(id) {
		this.id = id;
		this.query = "";
		const model = catalogue.deployments.find((one) => one.id === id)?.model;
		fill(this.versions, versionPicker(model, (value) => (this.query = value)));
	}

	async run() {
		const {panel} = this, routines = this.without ? [] : panel.asked.routines;
		const found = await this.caller.run((signal) => predict(this.id, panel.blob, {routines, query: this.query, signal}));
		if (!found) return;
		this.other = found.answer.predictions ?? [];
		this.told = tell(this.id, this.query) + (this.without && ", without the request's routines");
		this.result.hidden = false;
		this.draw();
	}

	draw() {
		if (!this.other) return;
		const {panel} = this, {least, shown: left} = panel.result;
		const right = this.other.filter((one) => one.confidence >= least && !panel.result.hidden.has(one.tag.name));
		const label = this.slider.parentElement;
		label.hidden = ![...left, ...right].some((one) => one.bound);
		if (!label.hidden) panel.viewer.mark(left, right, Number(this.slider.value));
		fill(this.list, make("p.soft", `Left: ${tell(panel.one.id, panel.asked.query)} · right: ${this.told}`), differences(left, right));
	}

	clear() {
		this.other = null;
		this.result.hidden = true;
		this.caller.clear();
	}
}

const tell = (id, query) => id + decodeURIComponent(query).replace(/^version(_label)?=/, ", version ");

function overlap(one, other) {
	if (!one.bound || !other.bound) return one.bound || other.bound ? 0 : 1;
	const a = cornersOf(one), b = cornersOf(other);
	const wide = Math.min(a[2], b[2]) - Math.max(a[0], b[0]), tall = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
	const both = wide > 0 && tall > 0 ? wide * tall : 0, area = (c) => (c[2] - c[0]) * (c[3] - c[1]);
	return both / (area(a) + area(b) - both || 1);
}

/** The differences; greedy matches, best score first, by class. */
function differences(left, right) {
	const free = new Set(right), rows = [], sure = (one) => one.confidence.toFixed(3);
	let same = 0;
	for (const one of left.toSorted((a, b) => b.confidence - a.confidence)) {
		const [match, place] = [...free].filter((other) => other.tag.name === one.tag.name).map((other) => [other, overlap(one, other)]).filter(([, share]) => share >= SAME_PLACE).sort((a, b) => b[1] - a[1])[0] ?? [];
		if (!match) rows.push([one.tag.name, sure(one), "–", "only left"]);
		else {
			free.delete(match);
			const change = match.confidence - one.confidence;
			const told = [Math.abs(change) >= 0.0005 && `${change > 0 ? "+" : ""}${change.toFixed(3)}`, place < 0.99 && `moved (IoU ${place.toFixed(2)})`].filter(Boolean);
			if (told.length) rows.push([one.tag.name, sure(one), sure(match), told.join(", ")]);
			else same += 1;
		}
	}
	for (const other of free) rows.push([other.tag.name, "–", sure(other), "only right"]);
	const text = make("p", {role: "status"}, rows.length ? `${rows.length} differences, ${same} the same` : `No difference: ${same} the same`);
	return make("div.differences", text, rows.length > 0 && table(["class", "left", "right", "difference"], rows, "Differences"));
}
