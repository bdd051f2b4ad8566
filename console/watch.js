// Watch: graphs in total and by group, quotas, the last errors. `#watch/model/shapes`.

import {askJson, contact, path} from "./api.js";
import {bars, PARTS, sparkline, stack, timeChart} from "./charts.js";
import {$, bar, button, bytes, duration, fill, fits, link, make, milliseconds, search, show as say, table, tiles} from "./dom.js";
import {morph, poll} from "./live.js";

const WINDOWS = {"5m": ["5 minutes", 2], "1h": ["1 hour", 10], "24h": ["24 hours", 30]}; // and seconds between requests
const STATUSES = {"2xx": "#56b4e9", "3xx": "#999999", "4xx": "#e69f00", "5xx": "#d55e00"};

const chosen = {window: "5m", sort: "requests", down: true}; // while the page is open

export async function show(root, names) {
	const [name, kind] = names.toReversed();
	let seen = null, wrong = "", ended = () => {};
	const filter = search("Filter the errors", () => draw(), "Status, path, text, request id…", {id: "errors-filter"});
	const state = make("p.error", {role: "status"}), up = make("span");
	const above = make("div"), errors = make("div");
	const windows = Object.entries(WINDOWS).map(([id, [text]]) => button(text, () => begin((chosen.window = id)), {"data-window": id}));
	fill(root, bar(name !== undefined && link("#watch", "All"),
		bar({role: "group", "aria-label": "Time shown"}, windows), up), state, above,
	make("section.part", make("h2", "Last errors"), bar(filter), errors));

	const draw = () => {
		state.textContent = wrong;
		if (!seen) return;
		up.textContent = `Up for ${duration(seen.uptime_seconds)}`;
		const one = seen.series.find((each) => (name === undefined ? each.kind === "all" : each.name === name && (!kind || each.kind === kind)));
		morph(above, drawAll(seen, one, name, draw));
		morph(errors, drawErrors(seen.last_errors, name, filter.value));
	};
	const read = async () => {
		try {
			const asked = chosen.window, answer = await askJson(`stats?window=${asked}`, {signal: AbortSignal.timeout(15000)});
			if (asked !== chosen.window) return;
			[seen, wrong] = [answer, ""];
		} catch (error) {
			wrong = error.status ? error.message : "";
			if (error.status === 401 || error.status === 403) return draw() ?? false; // wrong keys are counted
		}
		draw();
	};
	const begin = () => {
		ended();
		for (const one of windows) one.ariaPressed = one.dataset.window === chosen.window;
		ended = poll(read, () => (wrong || contact.gone ? 5 : WINDOWS[chosen.window][1] * Math.max(1, (seen?.series.length ?? 0) / 20))); // less often for many groups
	};
	begin();
	return () => ended();
}

function drawAll(seen, one, name, redraw) {
	const all = name === undefined;
	return make("div", all ? now(seen, one) : make("div.part", make("h2", one ? `${one.kind} ${name}` : name)),
		one ? make("div.charts", charts(seen, one, all)) : make("p.empty", `Nothing called ‘${name}’ had requests in this time.`), all && [groups(seen, redraw), quotas(seen)]);
}

function now({server, limits}, {total}) {
	const last = (name) => server[name].findLast((value) => value != null);
	return tiles("Now", {Requests: total.requests.toLocaleString(), Errors: total.requests ? `${failedOf(total).toLocaleString()} (${shareOf(total)})` : "0",
		"p50, p99": total.requests ? `${milliseconds(total.latency.p50)}, ${milliseconds(total.latency.p99)}` : "–", "In flight": say(last("in_flight")), Queue: `${say(last("queue"))} of ${limits.queue.toLocaleString()}`,
		CPU: say(last("cpu_percent"), " %"), Memory: last("memory_bytes") == null ? "–" : `${bytes(last("memory_bytes"))} of ${bytes(limits.memory_bytes)}`, Refused: server.refused.reduce((sum, value) => sum + (value ?? 0), 0).toLocaleString()});
}

function charts({time, server}, one, isAll) {
	const known = (values) => values.some((value) => value != null), chart = (title, series, options) => Object.values(series).some(known) && timeChart(title, time, series, options);
	const waits = Object.fromEntries(Object.entries(one.parts).filter(([, values]) => known(values)));
	const {p50, p90, p99} = one.latency, mib = (values) => ({memory: values.map((value) => value && value / 2 ** 20)});
	return [chart("Requests a minute", one.requests, {stacked: true, colours: STATUSES}), chart("Latency", {p50, p90, p99}, {unit: " ms", digits: 2}),
		chart("Parts of the latency, mean", waits, {unit: " ms", stacked: true, colours: PARTS, digits: 2}), chart("Rows run at once, mean", {rows: one.batch_size}), batches(one.total.batch_sizes),
		!isAll && [chart("In flight, mean", {requests: one.in_flight}, {digits: 3}), chart("Queue, mean", {requests: one.queue}, {digits: 3}), chart("Refused", {requests: one.refused}, {digits: 0})],
		isAll && [chart("In flight, most", {requests: server.in_flight}, {digits: 0}), chart("Queue, mean", {requests: server.queue}), chart("Refused", {requests: server.refused}, {digits: 0}),
		chart("CPU, of one core", {CPU: server.cpu_percent}, {unit: " %"}), chart("Memory", mib(server.memory_bytes), {unit: " MiB", digits: 0}),
		chart("GPU memory", mib(server.gpu_memory_bytes), {unit: " MiB", digits: 0}), chart("GPU use", {use: server.gpu_utilisation_percent}, {unit: " %"})]];
}

function batches(sizes) {
	const rows = Object.entries(sizes).map(([bound, count]) => [bound === "more" ? "more" : bound === "1" ? "1 row" : `to ${bound} rows`, count]);
	return rows.length > 0 && make("figure.chart", {"data-whole": "", "data-key": "batches"}, make("figcaption", "Batch sizes, requests"), bars(rows, Math.max(...Object.values(sizes))));
}

const QUANTILES = ["p50", "p90", "p99"];
const failedOf = ({by_status: by}) => by["4xx"] + by["5xx"], shareOf = (total) => say((100 * failedOf(total)) / (total.requests || 1), " %", 1);
const COLUMNS = {kind: ["Kind", ({kind}) => kind], name: ["Name", ({name}) => name], requests: ["Requests", ({total}) => total.requests], errors: ["Errors", ({total}) => failedOf(total) / (total.requests || 1)],
	...Object.fromEntries(QUANTILES.map((q) => [q, [q, ({total}) => total.latency[q]]]))};

function groups({series}, redraw) {
	const of = COLUMNS[chosen.sort][1], sign = chosen.down ? -1 : 1;
	const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b) : (a ?? -1) - (b ?? -1));
	const rows = series.filter(({kind}) => kind !== "all").sort((a, b) => sign * compare(of(a), of(b)) || a.name.localeCompare(b.name));
	if (!rows.length) return make("p.empty", {"data-key": "groups"}, "There were no requests in this time. New ones are shown here.");
	const sort = (id) => () => {
		Object.assign(chosen, {sort: id, down: chosen.sort === id ? !chosen.down : id !== "name" && id !== "kind"});
		redraw();
	};
	const made = table([...Object.entries(COLUMNS).map(([id, [title]]) => button(`${title}${chosen.sort === id ? (chosen.down ? " ↓" : " ↑") : ""}`, sort(id), {"data-sort": id})), "Requests over time"],
		rows.map((one) => [one.kind, link(`#watch/${one.kind}/${path(one.name)}`, one.name), one.total.requests.toLocaleString(), shareOf(one.total),
			...QUANTILES.map((q) => milliseconds(one.total.latency[q])), sparkline(stack(Object.values(one.requests)).at(-1))]), "All groups", rows.map(({kind, name}) => `${kind} ${name}`));
	$(`[data-sort=${chosen.sort}]`, made).parentElement.setAttribute("aria-sort", chosen.down ? "descending" : "ascending");
	return make("section.part", {id: "watch-groups", "data-key": "groups"}, make("h2", "Deployments, models, pipelines, handlers"), made);
}

function quotas({quotas: all, now}) {
	if (!all.length) return null;
	const rows = all.map((one) => [one.key, `${one.used.toLocaleString()} of ${one.limit.toLocaleString()} a ${one.period}`, make("progress", {max: one.limit, value: one.used, label: `Used by ${one.key}`}), `in ${duration(Math.max(0, one.resets - now))}`]);
	return make("section.part", {id: "watch-quotas", "data-key": "quotas"}, make("h2", "Quotas"), table(["Key", "Calls used", "Share", "Resets"], rows, "Quotas"));
}

function drawErrors(all, name, sought) {
	const own = all.filter((one) => name === undefined || [one.model, one.deployment, one.route].includes(name));
	const text = (one) => [one.status, one.method, one.path, one.error, one.request_id, one.model, one.deployment].join(" ");
	const when = (time) => time[time.toDateString() === new Date().toDateString() ? "toLocaleTimeString" : "toLocaleString"]();
	const rows = own.filter((one) => fits(text(one), sought)).map((one) => [when(new Date(one.time * 1000)), String(one.status), `${one.method} ${one.path}`, one.error, one.request_id]);
	return make("div", {id: "watch-errors"}, rows.length ? table(["Time", "Status", "Call", "Error", "Request id"], rows, "Last errors", rows.map((row) => row[4])) : make("p.soft", own.length ? "No error matches." : "No errors."));
}
