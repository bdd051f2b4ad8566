// Charts: lines and stacked areas over time, sparklines, bars, parts of a time.

import {clamp, draw, make, milliseconds, show} from "./dom.js";

// Okabe and Ito's (https://jfly.uni-koeln.de/color/), then 13 computed: even to colour-blind eyes no two of the 20
// are closer than their closest two (CIEDE2000). Tests measure it.
export const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#f0e442", "#87000f", "#b4d2d2", "#695a78",
	"#c3d287", "#004b3c", "#0f0ff0", "#c3b4a5", "#697878", "#7878ff", "#c30f00", "#780087", "#87694b", "#961e4b"];

const HIGH = 190, LEFT = 46, BOTTOM = 22, TOP = 8;

/** A chart's approximate width, so that its text is not distorted. */
function room() {
	const all = Math.min(1900, innerWidth) - 38;
	return all / Math.max(1, Math.floor((all + 12) / 428)) - 40;
}

/** A round number at or above `most`, and the step of some four lines below it. */
function scaleFor(most) {
	const step = [1, 2, 2.5, 5, 10].map((one) => one * 10 ** Math.floor(Math.log10(Math.max(most, 1e-9) / 4))).find((one) => one * 4 >= most * 0.999);
	return {step, top: Math.max(step, Math.ceil(most / step - 1e-9) * step)};
}

const clock = (seconds, span) => new Date(seconds * 1000).toLocaleTimeString([], {hour: "2-digit", minute: "2-digit", ...(span < 900 && {second: "2-digit"})});

/**
 * A chart over time. `times` are seconds [N]; `series` {name: numbers or nulls [N]}; `unit` of the numbers;
 * `stacked` lays them on each other. What is missing leaves a gap.
 */
export function timeChart(title, times, series, {unit = "", stacked = false, digits = 1, colours = {}} = {}) {
	const names = Object.keys(series), rows = Object.values(series), count = times.length, wide = room();
	const across = wide - LEFT - 8, at = (index) => LEFT + (across * index) / (count - 1);
	const stacks = stacked ? stack(rows) : rows;
	const {step, top} = scaleFor(Math.max(0, ...stacks.flat()) || 1);
	const y = (value) => TOP + (HIGH - BOTTOM - TOP) * (1 - value / top);
	const chart = draw("svg", {viewBox: `0 0 ${wide} ${HIGH}`, preserveAspectRatio: "none", role: "img",
		"aria-label": `${title}. Now: ${names.map((name) => `${name} ${show(series[name].findLast((one) => one != null), unit, digits)}`).join(", ")}`});
	for (let value = 0; value <= top * 1.0001; value += step) {
		chart.append(draw("line", {class: "axis", x1: LEFT, x2: wide - 8, y1: y(value), y2: y(value)}),
			draw("text", {x: LEFT - 5, y: y(value) + 4, "text-anchor": "end"}, Number(value.toPrecision(6))));
	}
	const span = times.at(-1) - times[0];
	for (const [part, anchor] of [[0, "start"], [0.5, "middle"], [1, "end"]]) {
		const index = Math.round(part * (count - 1));
		chart.append(draw("text", {x: at(index), y: HIGH - 6, "text-anchor": anchor}, clock(times[index], span)));
	}
	const colour = (index) => colours[names[index]] ?? COLOURS[index];
	stacks.forEach((values, index) => {
		const below = stacked && index ? stacks[index - 1] : values.map(() => 0);
		for (const run of runs(values)) {
			const line = run.map((n) => `${at(n)},${y(values[n])}`);
			if (stacked) chart.prepend(draw("polygon", {points: [...line, ...run.toReversed().map((n) => `${at(n)},${y(below[n])}`)].join(" "), fill: colour(index), "fill-opacity": 0.75}));
			else if (run.length === 1) chart.append(draw("circle", {cx: at(run[0]), cy: y(values[run[0]]), r: 2.5, fill: colour(index)}));
			else chart.append(draw("polyline", {points: line.join(" "), fill: "none", stroke: colour(index), "stroke-width": 2, "vector-effect": "non-scaling-stroke"}));
		}
	});
	const legend = make("div.legend", names.map((name, index) => make("span", swatch(colour(index)), name)));
	const figure = make("figure.chart", {"data-whole": "", "data-key": title}, make("figcaption", `${title}${unit ? `, ${unit.trim()}` : ""}`), chart, names.length > 1 && legend);
	addTip(figure, chart, (part) => {
		const index = Math.round(((part * wide - LEFT) / across) * (count - 1));
		if (!(index >= 0 && index < count)) return "";
		return [clock(times[index], 0), ...names.map((name) => `${name}: ${show(series[name][index], unit, digits)}`)].join("\n");
	});
	return figure;
}

export function stack(rows) {
	const sums = [];
	return rows.map((row) => row.map((value, index) => (sums[index] = (sums[index] ?? 0) + (value ?? 0))));
}

/** The indices of values without a gap. */
function runs(values) {
	const found = [];
	values.forEach((value, index) => {
		if (value == null) return;
		if (values[index - 1] != null) found.at(-1).push(index);
		else found.push([index]);
	});
	return found;
}

function addTip(figure, over, textAt) {
	const tip = make("div.tip", {hidden: true});
	figure.append(tip);
	over.onpointermove = (event) => {
		const box = over.getBoundingClientRect(), text = textAt((event.clientX - box.left) / box.width);
		tip.hidden = !text;
		tip.textContent = text;
		const left = event.clientX - figure.getBoundingClientRect().left;
		tip.style.left = `${Math.min(left + 12, figure.clientWidth - tip.offsetWidth - 4)}px`;
	};
	over.onpointerleave = () => (tip.hidden = true);
}

export const swatch = (colour) => make("i.swatch", {style: `background:${colour}`});

export function sparkline(values) {
	const most = Math.max(1e-9, ...values);
	const points = values.map((value, index) => `${(index * 90) / (values.length - 1)},${22 - (20 * value) / most}`).join(" ");
	return draw("svg", {"data-whole": "", viewBox: "0 0 90 24", width: 90, height: 24, "aria-hidden": "true"}, draw("polyline", {points, fill: "none", stroke: "var(--ok)", "stroke-width": 1.5}));
}

/** Bars of `[name, value]` on a scale of 0..`most`. */
export function bars(rows, most = 1) {
	return make("div", {role: "group", label: "Chart"}, rows.map(([name, value]) =>
		make("div.barrow", make("span", name), make("span.track", make("i", {style: `width:${clamp(value / most, 0, 1) * 100}%`})),
			make("span.number", Number.isInteger(value) ? value : value.toFixed(3)))));
}

export const PARTS = {queue: "#8a94a6", decode: "#56b4e9", inference: "#0072b2", routines: "#009e73", encode: "#e69f00", other: "#cc79a7", network: "#d3d9e2"};

export function timeBar({took, parts: {total, ...parts}, id}) {
	const named = Object.fromEntries(Object.entries(parts).filter(([name]) => name in PARTS));
	const sum = Object.values(named).reduce((one, other) => one + other, 0);
	const rows = Object.entries({...named, ...(total - sum > 0.005 && {other: total - sum}), ...(total != null && {network: Math.max(0, took - total)})});
	const bar = make("div.times", {"aria-hidden": "true"}, rows.map(([name, value]) =>
		make("i", {title: `${name} ${milliseconds(value)}`, style: `flex:${Math.max(value, 1e-6)};background:${PARTS[name]}`})));
	return make("div.timing", make("strong", milliseconds(took)), rows.length > 0 && bar,
		make("div.legend", rows.map(([name, value]) => make("span", swatch(PARTS[name]), `${name} ${milliseconds(value)}`)), id && make("span", `request ${id}`)));
}
