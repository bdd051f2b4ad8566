// Several pictures at once: three requests at a time, progress, filter, exports.

import {Caller} from "./call.js";
import {bar, button, download, fill, make, search, status, toBlob, withoutEnding} from "./dom.js";
import {drawThumb, predict, readPicture} from "./predict.js";
import {csvOf} from "./result.js";
import {paint} from "./viewer.js";

const AT_ONCE = 3;

export class Gallery {
	constructor(panel) {
		Object.assign(this, {panel, pictures: [], running: 0, ended: false});
		this.abort = new AbortController();
		this.progress = make("progress", {max: 1, value: 0, label: "Pictures done"});
		this.status = status();
		this.filter = search("Filter the pictures", () => this.sift(), "Class or file name…");
		this.stop = button("Stop", () => this.cancel());
		this.list = make("ul.gallery");
		this.exporting = new Caller(() => this.saveCoco(), "COCO");
		this.exporting.button.classList.remove("main");
		this.element = make("div.card", {hidden: true}, bar(this.progress, this.status, this.stop, this.filter,
			this.exporting.buttons, button("CSV", () => this.saveCsv()), button("PNG", () => this.savePng()), button("Close", () => this.close())), this.exporting.error, this.list);
	}

	add(files) {
		this.element.hidden = false;
		for (const blob of files) {
			const canvas = make("canvas"), text = make("span", blob.name);
			const picture = {blob, name: blob.name, canvas, text, state: "waiting"};
			picture.row = make("li", make("button", {onclick: () => this.open(picture)}, canvas, text));
			this.list.append(picture.row);
			this.pictures.push(picture);
		}
		this.work();
	}

	work() {
		while (this.running < AT_ONCE && !this.ended) {
			const next = this.pictures.find((one) => one.state === "waiting");
			if (!next) break;
			next.state = "running";
			this.running += 1;
			this.ask(next).finally(() => {
				this.running -= 1;
				this.tell();
				this.work();
			});
		}
		this.tell();
	}

	async ask(picture) {
		const {panel} = this;
		try {
			picture.bitmap = await readPicture(panel.one.id, picture.blob);
			drawThumb(picture.canvas, picture.bitmap);
			const response = await predict(panel.one.id, picture.blob, {routines: panel.chain.value, query: panel.query, signal: this.abort.signal});
			picture.answer = await response.json();
			picture.state = "done";
			const found = picture.answer.predictions ?? [];
			picture.text.textContent = `${picture.name}: ${found.some((one) => one.bound) || !found.length ? `${found.length} found` : `${found[0].tag.name} ${found[0].confidence.toFixed(2)}`}`;
			drawThumb(picture.canvas, paint(picture.bitmap, found, 0.35, false));
		} catch (error) {
			picture.state = error.name === "AbortError" ? "stopped" : "failed";
			picture.text.textContent = picture.text.title = `${picture.name}: ${error.name === "AbortError" ? "stopped" : error.message}`;
			picture.row.classList.toggle("warning", error.name !== "AbortError");
		}
		this.sift();
	}

	tell() {
		const count = (...states) => this.pictures.filter((one) => states.includes(one.state)).length, done = this.pictures.length - count("waiting", "running"), failed = count("failed");
		Object.assign(this.progress, {max: this.pictures.length || 1, value: done});
		this.status.textContent = `${done} of ${this.pictures.length} done${failed ? `, ${failed} failed` : ""}`;
		this.stop.hidden = done === this.pictures.length;
	}

	sift() {
		const wanted = this.filter.value.trim().toLowerCase();
		for (const one of this.pictures) one.row.hidden = Boolean(wanted) && !fits(one, wanted);
	}

	get done() {
		const wanted = this.filter.value.trim().toLowerCase();
		return this.pictures.filter((one) => one.state === "done" && (!wanted || fits(one, wanted)));
	}

	open(picture) {
		if (picture.state === "failed" || !picture.bitmap) return this.panel.take(picture.blob, picture.name);
		const {panel} = this;
		panel.caller.clear();
		Object.assign(panel, {blob: picture.blob, name: picture.name, bitmap: picture.bitmap});
		panel.seen.hidden = false;
		panel.viewer.show(picture.bitmap);
		panel.showAnswer(picture.answer ?? null);
		panel.seen.scrollIntoView({block: "nearest"});
		return null;
	}

	cancel() {
		for (const one of this.pictures) if (one.state === "waiting") one.state = "stopped";
		this.abort.abort();
		this.abort = new AbortController();
		this.tell();
	}

	close() {
		this.cancel();
		this.pictures = [];
		fill(this.list);
		this.element.hidden = true;
	}

	end() {
		this.ended = true;
		this.abort.abort();
	}

	saveCsv() {
		download("pictures.csv", csvOf(this.done.map((one) => ({name: one.name, predictions: one.answer.predictions ?? [], width: one.bitmap.width, height: one.bitmap.height}))), "text/csv");
	}

	async savePng() {
		for (const one of this.done) {
			download(`${withoutEnding(one.name)}-seen.png`, await toBlob(paint(one.bitmap, one.answer.predictions ?? [])));
		}
	}

	/** One COCO data set of all pictures, as the server writes each; ids are numbered anew. */
	async saveCoco() {
		const {panel} = this, whole = {images: [], annotations: [], categories: []}, categories = new Map();
		const query = [panel.query, "format=coco"].filter(Boolean).join("&");
		for (const [index, one] of this.done.entries()) {
			const found = await this.exporting.run((signal) => predict(panel.one.id, one.blob, {routines: panel.chain.value, query, signal}));
			if (!found) return;
			for (const image of found.answer.images) whole.images.push({...image, id: index + 1, file_name: one.name});
			for (const each of found.answer.annotations) whole.annotations.push({...each, id: whole.annotations.length + 1, image_id: index + 1});
			for (const each of found.answer.categories) categories.set(each.id, each);
		}
		whole.categories = [...categories.values()].sort((one, other) => one.id - other.id);
		download("coco.json", JSON.stringify(whole));
	}
}

const fits = (one, wanted) => one.name.toLowerCase().includes(wanted) || (one.answer?.predictions ?? []).some((each) => each.tag.name.toLowerCase().includes(wanted));
