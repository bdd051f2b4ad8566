// Try a deployment: pictures in, detections beside them.

import {ask, path} from "./api.js";
import {Caller} from "./call.js";
import {Camera} from "./camera.js";
import {Code, codeOf} from "./code.js";
import {Compare} from "./compare.js";
import {bar, bitmapOf, details, dropZone, fill, heading, make, notReady, several, shownBitmap, textBlock} from "./dom.js";
import {Gallery} from "./gallery.js";
import {drawThumb, predict, readPicture, versionPicker} from "./predict.js";
import {Result} from "./result.js";
import {Chain} from "./routines.js";
import {Viewer} from "./viewer.js";

export function show(root, one) {
	if (one.state !== "ready") return fill(root, about(one), notReady(one));
	const panel = new Panel(root, one);
	return () => panel.leave();
}

function about(one) {
	const names = Object.values(one.classes).map((each) => each.name);
	const always = one.routines.map((each) => each.name).join(", ");
	return make("div", heading(one), make("p.soft", [`model ${one.model}`, one.version_tag,
		names.length && `${names.length} classes: ${several(names, 12)}`, always && `always runs ${always}`].filter(Boolean).join(" · ")));
}

class Panel {
	constructor(root, one) {
		Object.assign(this, {one, query: "", previews: 0});
		this.chain = new Chain(() => this.chainChanged());
		this.caller = new Caller(() => this.send());
		this.viewer = new Viewer();
		this.result = new Result(this.viewer, () => this.compare?.draw());
		this.gallery = new Gallery(this);
		this.camera = new Camera((blob) => this.take(blob, "camera.jpg"), this.caller);
		this.compare = new Compare(this);
		this.code = new Code((own) => ({picture: this.name, ...codeOf(own, `${path(one.id)}/predict?${new URLSearchParams({routines: JSON.stringify(this.chain.value)})}&${this.query}`)}));
		this.json = textBlock("The answer as JSON", () => `${this.name}.json`);
		this.shownTo = details("What the model is shown", make("div.preview"));
		this.shownTo.ontoggle = () => this.preview();
		this.samples = make("div.thumbs", {role: "group", label: "Samples"});
		fill(root, about(one), ...this.parts());
		this.addSamples();
		this.code.show();
	}

	parts() {
		const drop = dropZone("Choose pictures", (files) => (files.length > 1 ? this.gallery.add(files) : this.take(files[0], files[0].name)), {accept: "image/*,.tif,.tiff,.heic,.avif,.npy", multiple: true, extra: [this.camera.button, make("span.soft", "or drop or paste them here", this.one.samples.length ? ", or take a sample:" : ""), this.samples]});
		const controls = bar(versionPicker(this.one.model, (value) => this.setQuery(value)), this.chain.element, this.caller.buttons);
		this.seen = make("div.two", {hidden: true}, make("div", this.viewer.element, this.caller.times), this.result.element);
		this.more = make("div", {hidden: true}, details("The answer as JSON", this.json), this.shownTo, this.compare.element);
		return [drop, this.camera.element, controls, this.caller.error, this.gallery.element, this.seen, this.more, this.code.element];
	}

	leave() {
		this.camera.end();
		this.caller.clear();
		this.gallery.close();
		this.compare.clear();
		this.left = true; // ignore what comes later
	}

	setQuery(value) {
		this.query = value;
		this.code.soon();
		if (this.bitmap) this.send();
	}

	chainChanged() {
		this.caller.fail("");
		this.code.soon();
		clearTimeout(this.timer);
		this.timer = setTimeout(() => this.preview(), 300); // not at each keystroke
	}

	addSamples() {
		for (const name of this.one.samples) {
			const canvas = make("canvas"), thumb = make("button.thumb.sample", {title: name, label: `Sample ${name}`}, canvas);
			this.samples.append(thumb);
			const blob = ask(`${path(this.one.id)}/samples/${path(name)}`).then((response) => response.blob());
			thumb.onclick = () => blob.then((one) => this.take(one, name)).catch((error) => this.caller.fail(error.message));
			blob.then(createImageBitmap).then((bitmap) => drawThumb(canvas, bitmap), () => (thumb.textContent = name));
		}
	}

	async take(blob, name) {
		if (!(await this.read(blob, name))) return;
		await this.send();
		if (this.camera.live) await this.preview(); // one request in flight
	}

	/** Show a picture; false if it cannot be read or another was chosen. */
	async read(blob, name) {
		if (blob !== this.camera.shot) this.camera.setLive(false);
		if (!this.camera.live) this.caller.clear();
		Object.assign(this, {blob, name, answer: null, bitmap: null});
		this.code.soon();
		const found = await readPicture(this.one.id, blob).catch((error) => error), failed = found instanceof Error;
		if (this.left || this.blob !== blob) return false;
		if (!failed) this.bitmap = found;
		if (failed || !this.camera.live) this.showAnswer(null);
		if (failed) return this.caller.fail(found.message);
		this.viewer.show(found);
		if (this.camera.live) return true;
		this.seen.scrollIntoView({block: "nearest"});
		this.preview();
		return true;
	}

	async send() {
		if (!this.bitmap) return this.caller.fail("Choose a picture first.");
		const {blob, asking} = this, found = await this.caller.run((signal) => predict(this.one.id, blob, {...asking, signal}));
		if (blob === this.blob && found !== undefined) this.showAnswer(found?.answer ?? null, asking);
	}

	/** A request's options, as chosen now. */
	get asking() {
		return {routines: this.chain.value, query: this.query};
	}

	showAnswer(answer, asked = this.asking) {
		Object.assign(this, {answer, asked});
		this.more.hidden = this.seen.hidden = !answer && !this.bitmap;
		this.compare.clear();
		this.result.show(answer, this.bitmap, this.name, this.camera.live);
		this.json.tell(answer);
	}

	async preview() {
		if (!this.shownTo.open || !this.blob) return;
		const place = this.shownTo.lastElementChild, turn = ++this.previews;
		try {
			const response = await predict(this.one.id, this.blob, {routines: this.chain.value, verb: "preview"});
			const bitmap = await bitmapOf(response);
			if (turn !== this.previews) return;
			const size = response.headers.get("X-Shown-Size").replace("x", "×");
			fill(place, shownBitmap(bitmap, "What the model is shown"), make("p.soft", `${size} pixels, before it is resized for the model`));
		} catch (error) {
			if (turn === this.previews) fill(place, make("p.error", error.message));
		}
	}
}
