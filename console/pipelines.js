// Try a pipeline: the form of a model, and its nodes as a graph with the time of each.

import {draw, fill, make, milliseconds} from "./dom.js";
import {show as showForm} from "./tensors.js";

const WIDE = 132, TALL = 48, GAP = 44, ROW = 66;

export function show(root, one) {
	const graph = make("div.graph", {tabIndex: 0, role: "region", label: "The pipeline's graph"}, drawGraph(one));
	return showForm(root, one, graph, (found) => fill(graph, drawGraph(one, found?.time.parts)));
}

/** Each node's column: one more than the furthest of its inputs. */
function columnsOf(nodes) {
	const columns = {__proto__: null, request: 0};
	for (let round = 0; round <= nodes.length; round += 1) {
		for (const node of nodes) columns[node.name] = 1 + Math.max(0, ...node.inputs.map((link) => columns[link.node] ?? 0));
	}
	return columns;
}

function drawGraph(one, parts = {}) {
	const nodes = [...one.nodes, {name: "response", inputs: one.outputs}], columns = columnsOf(nodes);
	columns.response = 1 + Math.max(0, ...one.nodes.map((node) => columns[node.name]));
	const rows = {}, spots = {__proto__: null}, all = [{name: "request"}, ...nodes];
	for (const {name} of all) {
		const column = columns[name], row = (rows[column] = (rows[column] ?? -1) + 1);
		spots[name] = {x: 10 + column * (WIDE + GAP), y: 10 + row * ROW};
	}
	const width = 20 + (columns.response + 1) * (WIDE + GAP) - GAP, height = 20 + (Math.max(...Object.values(rows)) + 1) * ROW;
	const links = nodes.flatMap((node) => node.inputs.map((link) => ({...link, target: node.name})));
	const time = ({name}) => parts[`node-${name}`], told = (node) => (time(node) == null ? "" : ` ${milliseconds(time(node))}`), slowest = Math.max(...one.nodes.map((node) => time(node) ?? 0));
	const tell = `request, ${one.nodes.map((node) => `${node.name}${told(node)} from ${[...new Set(node.inputs.map((link) => link.node))].join(" and ")}`).join(", ")}`;
	return draw("svg", {width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Graph: ${tell}`}, ...links.map((link) => drawLink(spots[link.node], spots[link.target], link)),
		...all.map((node) => drawNode(spots[node.name], node, time(node), slowest)));
}

function drawLink(from, to, {item, name}) {
	const x1 = from.x + WIDE, y1 = from.y + TALL / 2, x2 = to.x, y2 = to.y + TALL / 2, half = (x2 - x1) / 2;
	const over = y1 === y2 && x2 - x1 > GAP ? ROW * 0.6 : 0; // around nodes between
	return draw("g", {}, draw("path", {d: `M${x1},${y1}C${x1 + half},${y1 + over} ${x2 - half},${y2 + over} ${x2},${y2}`}), draw("title", {}, `${item} → ${name}`));
}

function drawNode({x, y}, {name, model, function: made}, time, slowest) {
	const what = model ?? made ?? "", below = time != null ? milliseconds(time) : what;
	return draw("g", {class: time != null && time === slowest ? "slow" : null}, draw("rect", {x, y, width: WIDE, height: TALL, rx: 8}),
		draw("text", {class: "name", x: x + WIDE / 2, y: y + 20}, cut(name)), draw("text", {x: x + WIDE / 2, y: y + 37}, cut(below)), draw("title", {}, what ? `${name}: ${what}` : name));
}

const cut = (text) => (text.length > 18 ? `${text.slice(0, 17)}…` : text);
