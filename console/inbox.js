// Inbox of active learning: sort, judge by keys, export; what a threshold keeps. `#inbox/pets`.

import {ask, askJson, catalogue, path} from "./api.js";
import {attempt} from "./app.js";
import {$, bar, bitmapOf, button, clamp, download, draw, fill, make, range, select, several, show as say, status} from "./dom.js";
import {paint} from "./viewer.js";

const PAGE = 60, SMALL = 320, LARGE = 1600;
const ORDERS = {highest: (a, b) => (b.score ?? 0) - (a.score ?? 0), lowest: (a, b) => ORDERS.highest(b, a), newest: (a, b) => String(b.time).localeCompare(String(a.time))};
const VERDICTS = {accepted: "✓ accepted", rejected: "✗ rejected", none: ""};

export async function show(root, [wanted]) {
	const own = catalogue.deployments.filter((one) => one.active_learning), deployment = own.find(({id}) => id === wanted) ?? (wanted ? null : own[0]);
	if (!deployment) return fill(root, make("p.empty", wanted ? `No deployment called ‘${wanted}’ puts pictures aside.` : "No deployment puts pictures aside. Add `active_learning` to one in the config."));
	const inbox = new Inbox(deployment, own);
	fill(root, inbox.element);
	document.addEventListener("keydown", inbox.onkey);
	await attempt(() => inbox.read());
	return () => inbox.end();
}

class Inbox {
	constructor({id, active_learning: learning}, own) {
		Object.assign(this, {id, at: `${path(id)}/active_learning/${path(learning.group)}`, all: [], listed: [], most: PAGE, undone: [], order: "highest", filter: "all", made: new Map(), saving: Promise.resolve()});
		this.onkey = (event) => this.press(event);
		this.counts = status("p");
		this.list = make("ul.gallery");
		this.more = button("Show more", () => this.draw((this.most += PAGE)), {hidden: true});
		this.large = make("div.card", {id: "inbox-large", hidden: true});
		this.threshold = make("section.card", {label: "Threshold"});
		this.undoing = button("Undo (U)", () => this.undo());
		this.judges = Object.entries({accepted: "Accept (A)", rejected: "Reject (R)"}).map(([verdict, text]) => button(text, () => this.judge(verdict), {"data-verdict": verdict}));
		this.verdicts = bar(this.judges, this.undoing);
		this.seer = new IntersectionObserver((seen) => seen.filter((one) => one.isIntersecting).forEach(({target}) => this.paintThumb(target)), {rootMargin: "300px"});
		const controls = bar(
			own.length > 1 ? select("Deployment", own.map((one) => one.id), (name) => (location.hash = `#inbox/${path(name)}`), id) : make("h2", id),
			select("Sort by", [["highest", "score, highest first"], ["lowest", "score, lowest first"], ["newest", "newest first"]], (order) => this.look({order})),
			select("Show", ["all", ["none", "undecided"], "accepted", "rejected"], (filter) => this.look({filter})),
			button("Refresh", () => attempt(() => this.read())), button("COCO of all", () => attempt(() => this.save())), button("COCO of the accepted", () => attempt(() => this.save("accepted"))));
		this.element = make("div", controls, this.counts, this.threshold, make("p.soft", "Arrow keys move."),
			make("div.two", make("div", this.list, this.more), this.large));
		this.element.onpointerdown = () => (this.typed = false);
	}

	end() {
		this.ended = true;
		this.seer.disconnect();
		document.removeEventListener("keydown", this.onkey);
	}

	async read() {
		const [{images}, scores] = await Promise.all([askJson(`${this.at}?format=json`), askJson(`${this.at}/scores`)]);
		if (this.ended) return;
		this.all = images;
		this.undone = [];
		this.chosen = images.find(({file_name: name}) => name === this.chosen?.file_name) ?? null;
		this.drawThreshold(scores);
		this.draw();
	}

	draw() {
		const {all, filter} = this, count = (verdict) => all.filter((one) => one.verdict === verdict).length;
		this.counts.textContent = `${all.length} picture${all.length === 1 ? "" : "s"}: ${count("accepted")} accepted, ${count("rejected")} rejected, ${count("none")} undecided`;
		this.listed = all.filter((one) => filter === "all" || one.verdict === filter).sort(ORDERS[this.order]);
		if (!this.listed.includes(this.chosen)) this.chosen = this.listed[0] ?? null;
		const held = this.list.contains(document.activeElement);
		this.rows = this.listed.slice(0, this.most).map((one) => this.row(one));
		fill(this.list, this.rows, !this.rows.length && make("li.empty", all.length ? "No picture matches." : "Nothing has been put aside yet."));
		this.more.hidden = this.listed.length <= this.most;
		this.mark(held);
	}

	/** After a choice by pointer, keys judge; by keyboard, the list keeps the focus. */
	look(changed) {
		Object.assign(this, changed).draw();
		this.mark(!this.typed);
	}

	row(one) {
		let row = this.made.get(one.file_name);
		if (!row) {
			const verdict = make("span"), shown = make("button", {onclick: () => this.choose(row.one)}, make("canvas", {width: 1, height: 1}), make("span", `score ${one.score?.toFixed(3) ?? "–"} `, verdict));
			row = Object.assign(make("li", shown), {shown, verdict});
			this.made.set(one.file_name, row);
			this.seer.observe(row);
		}
		row.one = one;
		Object.assign(row.verdict, {className: one.verdict, textContent: VERDICTS[one.verdict]});
		return row;
	}

	/** Small pictures are enlarged: labels need room. */
	async paintOf(one, side) {
		const bitmap = await bitmapOf(ask(`${this.at}/${one.file_name}?side=${side}`)), {width, height} = bitmap;
		const scale = Math.floor(SMALL / Math.max(width, height)) || 1;
		const painted = paint(Object.assign(bitmap, {full: {width: width * scale, height: height * scale}, pixelated: true}), one.predictions);
		bitmap.close();
		return painted;
	}

	paintThumb(row) {
		this.seer.unobserve(row);
		this.paintOf(row.one, SMALL).then((painted) => $("canvas", row).replaceWith(painted), () => {});
	}

	choose(one) {
		this.chosen = one;
		const place = this.listed.indexOf(one);
		if (place >= this.most) this.draw((this.most = Math.ceil((place + 1) / PAGE) * PAGE));
		else this.mark(true);
	}

	mark(focus) {
		for (const {one, shown} of this.rows) {
			const is = one === this.chosen;
			Object.assign(shown, {tabIndex: is ? 0 : -1, ariaPressed: is, ariaLabel: `Picture, score ${one.score?.toFixed(3)}, ${one.verdict === "none" ? "undecided" : one.verdict}`});
			if (is && focus) shown.focus();
		}
		this.undoing.disabled = !this.undone.length;
		attempt(() => this.enlarge(this.chosen));
	}

	async enlarge(one) {
		this.large.hidden = !one;
		if (!one) return;
		for (const each of this.judges) each.ariaPressed = each.dataset.verdict === one.verdict;
		if (this.enlarged === one.file_name) return;
		this.enlarged = one.file_name;
		const seen = several(one.predictions.map(({tag, confidence}) => `${tag.name} ${confidence.toFixed(2)}`), 12) || "nothing seen";
		const about = make("p.soft", `score ${one.score?.toFixed(3)} · ${one.width} × ${one.height} · ${one.time ?? ""} · ${seen}`);
		fill(this.large, this.verdicts, about);
		const painted = await this.paintOf(one, LARGE);
		if (this.enlarged !== one.file_name) return;
		Object.assign(painted, {role: "img", ariaLabel: `The picture with ${seen}`});
		about.before(painted);
	}

	press(event) {
		this.typed = true;
		if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, dialog") || !this.listed.length) return;
		const across = this.columns(), moves = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across};
		const act = {a: () => this.judge("accepted"), r: () => this.judge("rejected"), u: () => this.undo()}[event.key.toLowerCase()];
		if (act ? !event.target.matches("body, nav *, .gallery *, #inbox-large *") : !(event.key in moves)) return;
		event.preventDefault();
		if (act) act();
		else this.choose(this.listed[clamp(this.listed.indexOf(this.chosen) + moves[event.key], 0, this.listed.length - 1)]);
	}

	columns() {
		const top = this.rows[0].offsetTop;
		return Math.max(1, this.rows.findIndex((row) => row.offsetTop !== top));
	}

	judge(verdict) {
		const one = this.chosen;
		this.undone.push([one, one.verdict]);
		this.note(one, verdict, this.listed[this.listed.indexOf(one) + 1] ?? one);
	}

	undo() {
		const [one, verdict] = this.undone.pop() ?? [];
		if (one) this.note(one, verdict, one);
	}

	/** Shown at once, sent in order, and undone if the server refuses it. */
	note(one, verdict, next) {
		const was = one.verdict;
		one.verdict = verdict;
		this.chosen = next;
		this.draw();
		this.mark(true);
		this.saving = this.saving.then(() => attempt(() => ask(`${this.at}/${one.file_name}/verdict`, {method: "PUT", body: JSON.stringify({verdict})}))).then((taken) => {
			if (taken) return;
			one.verdict = was;
			this.undone = this.undone.filter(([each]) => each !== one);
			if (!this.ended) this.draw();
		});
	}

	async save(verdict) {
		const coco = await askJson(this.at), images = coco.images.filter((one) => !verdict || one.verdict === verdict), kept = new Set(images.map(({id}) => id));
		download(`${this.id}${verdict ? `-${verdict}` : ""}.json`, JSON.stringify({...coco, images, annotations: coco.annotations.filter((one) => kept.has(one.image_id))}));
	}

	drawThreshold({scores, threshold, strategy, most}) {
		const said = status("p"), bins = new Array(50).fill(0);
		for (const score of scores) bins[clamp(Math.floor(score * 50), 0, 49)] += 1;
		const top = Math.max(1, ...bins), chart = draw("svg", {viewBox: "0 0 500 80", preserveAspectRatio: "none", class: "histogram", role: "img", "aria-label": `Histogram of the scores of the last ${scores.length} pictures`});
		const drawn = bins.map((count, place) => chart.appendChild(draw("rect", {x: place * 10 + 0.5, width: 9, y: 80 - (78 * count) / top, height: (78 * count) / top})));
		const slide = range(threshold, () => {
			const value = Number(slide.value), kept = scores.filter((score) => score >= value).length;
			said.textContent = scores.length ? `A threshold of ${value.toFixed(2)} would keep ${kept} of the last ${scores.length.toLocaleString()} pictures (${say((100 * kept) / scores.length, " %", 1)}). The config has ${threshold}, ${strategy}.`
				: `No picture has been seen since the start. Later this shows how many of the last ${most.toLocaleString()} a threshold would keep.`;
			drawn.forEach((bar, place) => bar.classList.toggle("kept", (place + 1) / 50 > value));
		});
		slide.ariaLabel = "Threshold";
		slide.oninput();
		fill(this.threshold, scores.length > 0 && make("div.sliding", chart, slide), said);
	}
}
