// Try a pipeline: the form of a model, and its nodes as a graph with the time of each.

import {draw, fill, heading, make, milliseconds, notReady} from "./dom.js";
import {TensorPanel} from "./tensors.js";

const WIDE = 132, TALL = 48, GAP = 44, ROW = 66;

export async function show(root, one) {
	const graph = make("div.graph", {tabIndex: 0, role: "region", label: "The pipeline's graph"});
	graph.append(drawGraph(one));
	if (one.state !== "ready") {
		return fill(root, heading(one), graph, notReady(one));
	}
	const panel = new TensorPanel(one, (found) => fill(graph, drawGraph(one, found?.time.parts)));
	fill(root, heading(one), graph, panel.element);
	await panel.read();
	return () => panel.caller.clear();
}

/** The column of each node: one more than the furthest that it takes an input from. */
function columnsOf(nodes) {
	const columns = {request: 0};
	for (let round = 0; round <= nodes.length; round += 1) {
		for (const node of nodes) columns[node.name] = 1 + Math.max(0, ...node.inputs.map((link) => columns[link.node] ?? 0));
	}
	return columns;
}

function drawGraph(one, parts = {}) {
	const nodes = [...one.nodes, {name: "answer", inputs: one.outputs}], columns = columnsOf(nodes);
	columns.answer = Math.max(...Object.values(columns), 1);
	if (one.nodes.some((node) => columns[node.name] === columns.answer)) columns.answer += 1;
	const rows = {}, spots = {};
	for (const name of ["request", ...nodes.map((node) => node.name)]) {
		const column = columns[name], row = (rows[column] = (rows[column] ?? -1) + 1);
		spots[name] = {x: 10 + column * (WIDE + GAP), y: 10 + row * ROW};
	}
	const width = 20 + (columns.answer + 1) * (WIDE + GAP) - GAP, height = 20 + (Math.max(...Object.values(rows)) + 1) * ROW;
	const times = one.nodes.map((node) => parts[`node-${node.name}`]).filter((time) => time != null), slowest = Math.max(...times, 0);
	const links = nodes.flatMap((node) => node.inputs.map((link) => ({...link, target: node.name})));
	const tell = `request, ${one.nodes.map((node) => `${node.name}${parts[`node-${node.name}`] != null ? ` ${milliseconds(parts[`node-${node.name}`])}` : ""} from ${[...new Set(node.inputs.map((link) => link.node))].join(" and ")}`).join(", ")}`;
	return draw("svg", {width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Graph: ${tell}`}, ...links.map((link) => drawLink(spots[link.node], spots[link.target], link)),
		...["request", ...nodes.map((node) => node.name)].map((name) => drawNode(spots[name], name, one.nodes.find((node) => node.name === name), parts[`node-${name}`], slowest)));
}

function drawLink(from, to, {item, name}) {
	if (!from || !to) return draw("g");
	const x1 = from.x + WIDE, y1 = from.y + TALL / 2, x2 = to.x, y2 = to.y + TALL / 2, half = Math.max(20, (x2 - x1) / 2);
	const over = y1 === y2 && x2 - x1 > GAP ? ROW * 0.6 : 0; // past the nodes between
	return draw("g", {}, draw("path", {d: `M${x1},${y1}C${x1 + half},${y1 + over} ${x2 - half},${y2 + over} ${x2},${y2}`}), draw("title", {}, `${item} → ${name}`));
}

function drawNode({x, y}, name, node, time, slowest) {
	const below = time != null ? milliseconds(time) : node ? node.model ?? node.function ?? "" : "";
	return draw("g", {class: time != null && time === slowest ? "slow" : null}, draw("rect", {x, y, width: WIDE, height: TALL, rx: 8}),
		draw("text", {class: "name", x: x + WIDE / 2, y: y + 20}, cut(name)), draw("text", {x: x + WIDE / 2, y: y + 37}, cut(below)), draw("title", {}, [name, node?.model ?? node?.function].filter(Boolean).join(": ")));
}

const cut = (text) => (text.length > 18 ? `${text.slice(0, 17)}…` : text);
