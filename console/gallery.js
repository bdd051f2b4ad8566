// Several pictures at once: three requests at a time, progress, filter, exports.

import {Caller} from "./call.js";
import {bar, button, download, fill, fits, make, search, sizeOf, status} from "./dom.js";
import {drawThumb, predict, readPicture} from "./predict.js";
import {csvOf, savePicture} from "./result.js";
import {paint} from "./viewer.js";

const AT_ONCE = 3;

export class Gallery {
	constructor(panel) {
		Object.assign(this, {panel, pictures: [], running: 0, abort: new AbortController()});
		this.progress = make("progress", {max: 1, value: 0, label: "Pictures done"});
		this.status = status();
		this.filter = search("Filter the pictures", () => this.sift(), "Class or file name…");
		this.stop = button("Stop", () => this.cancel());
		this.list = make("ul.gallery");
		this.exporting = new Caller(() => this.saveCoco(), "COCO");
		this.exporting.button.classList.remove("main");
		this.element = make("div.card", {hidden: true}, bar(this.progress, this.status, this.stop, this.filter,
			this.exporting.buttons, button("CSV", () => download("pictures.csv", csvOf(this.done), "text/csv")), button("PNG", () => (this.saving ??= this.savePng().catch((error) => this.exporting.fail(error.message)).finally(() => (this.saving = null)))), button("Close", () => this.close())), this.exporting.error, this.list);
	}

	add(files) {
		this.element.hidden = false;
		this.panel.caller.fail("");
		for (const blob of files) {
			const canvas = make("canvas"), text = make("span", blob.name);
			const picture = {blob, name: blob.name, canvas, text, state: "waiting", predictions: []};
			picture.row = make("li", make("button", {onclick: () => this.open(picture)}, canvas, text));
			this.list.append(picture.row);
			this.pictures.push(picture);
		}
		this.work();
	}

	work() {
		for (const next of this.those("waiting").slice(0, AT_ONCE - this.running)) {
			next.state = "running";
			this.running += 1;
			next.turn = this.ask(next).finally(() => {
				this.running -= 1;
				this.work();
			});
		}
		this.tell();
	}

	async ask(picture) {
		const {one: {id}, asking} = this.panel, {signal} = this.abort;
		picture.options = asking;
		try {
			const bitmap = await readPicture(id, picture.blob);
			drawThumb(picture.canvas, bitmap);
			Object.assign(picture, sizeOf(bitmap));
			bitmap.close(); // a photo's pixels take 50 MB: read again when needed
			const response = await predict(id, picture.blob, {...picture.options, signal});
			picture.answer = await response.json();
			const found = (picture.predictions = picture.answer.predictions ?? []);
			drawThumb(picture.canvas, paint(picture.canvas, found, 0.35, false));
			this.end(picture, "done", found.some((one) => one.bound) || !found.length ? `${found.length} found` : `${found[0].tag.name} ${found[0].confidence.toFixed(2)}`);
		} catch (error) {
			if (error.name === "AbortError") this.end(picture, "stopped");
			else this.end(picture, "failed", error.message);
		}
		this.sift();
	}

	end(picture, state, text = state) {
		picture.state = state;
		picture.text.textContent = picture.text.title = `${picture.name}: ${text}`;
		picture.row.className = state === "failed" ? "warning" : "";
	}

	tell() {
		const all = this.pictures.length, failed = this.those("failed").length, stopped = this.those("stopped").length, done = this.those("done").length + failed;
		Object.assign(this.progress, {max: all || 1, value: done});
		this.status.textContent = `${done} of ${all} done${failed ? `, ${failed} failed` : ""}${stopped ? `, ${stopped} stopped` : ""}`;
		this.stop.hidden = done + stopped === all;
	}

	sift() {
		for (const {name, predictions, row} of this.pictures) {
			const seen = predictions.some((one) => one.bound) ? predictions : predictions.slice(0, 1); // a classifier names all classes
			row.hidden = ![name, ...seen.map((one) => one.tag.name)].some((text) => fits(text, this.filter.value));
		}
	}

	those(state) {
		return this.pictures.filter((one) => one.state === state);
	}

	get done() {
		return this.those("done").filter((one) => !one.row.hidden);
	}

	async open(picture) {
		const {panel} = this, {blob, name} = picture;
		if (["failed", "stopped"].includes(picture.state)) {
			picture.state = "waiting";
			this.work();
		}
		if (picture.state === "waiting") return panel.take(blob, name);
		if (!(await panel.read(blob, name))) return;
		panel.seen.scrollIntoView({block: "nearest"});
		await picture.turn;
		if (panel.blob !== blob || panel.answer) return;
		if (picture.answer) panel.showAnswer(picture.answer, picture.options);
		else panel.caller.fail(picture.text.title);
	}

	cancel() {
		for (const one of this.those("waiting")) this.end(one, "stopped");
		this.abort.abort();
		this.abort = new AbortController();
		this.tell();
	}

	close() {
		this.cancel();
		this.exporting.clear();
		this.pictures = [];
		fill(this.list);
		this.element.hidden = true;
	}

	async savePng() {
		const all = this.done;
		for (const [at, one] of all.entries()) {
			const bitmap = await readPicture(this.panel.one.id, one.blob);
			if (!this.pictures.includes(one)) return;
			await savePicture(one.name, paint(bitmap, one.predictions));
			bitmap.close();
			this.exporting.status.textContent = `${at + 1} of ${all.length} given to the browser`;
			await new Promise((done) => setTimeout(done, 150)); // Chromium allows 10 per second
		}
	}

	/** One COCO data set of all pictures, from the server's of each; ids are numbered anew. */
	async saveCoco() {
		const whole = {images: [], annotations: [], categories: []}, categories = new Map();
		for (const [index, one] of this.done.entries()) {
			const query = `format=coco&${one.options.query}`;
			one.coco ??= (await this.exporting.run((signal) => predict(this.panel.one.id, one.blob, {...one.options, query, signal})))?.answer;
			if (!one.coco) return;
			const {images = [], annotations = [], categories: own = []} = one.coco;
			for (const image of images) whole.images.push({...image, id: index + 1, file_name: one.name});
			for (const each of annotations) whole.annotations.push({...each, id: whole.annotations.length + 1, image_id: index + 1});
			for (const each of own) categories.set(each.id, each);
		}
		whole.categories = [...categories.values()].sort((one, other) => one.id - other.id);
		download("coco.json", JSON.stringify(whole));
	}
}
