// A user's call: sending, waiting, stopping, its time and its error.

import {askJson, readJson, timing} from "./api.js";
import {timeBar} from "./charts.js";
import {bar, button, fill, make, status} from "./dom.js";

export class Caller {
	constructor(send, text = "Send") {
		this.button = button(text, send, {className: "main send"});
		this.stop = button("Stop", () => this.abort?.abort(), {hidden: true});
		this.status = status("span");
		this.ticker = make("span");
		this.times = make("div");
		this.error = make("p.error", {role: "alert"});
		this.buttons = [this.button, this.stop, make("span.soft", this.status, this.ticker)];
	}

	/** As a panel shows it, after other controls. */
	rows(...controls) {
		return [bar(controls, this.buttons), this.error, this.times];
	}

	clear() {
		this.abort?.abort();
		this.abort = null;
		this.rest();
		this.status.textContent = "";
		fill(this.times);
		this.fail("");
	}

	/** The button works again, and has the focus if it had it before. */
	rest() {
		if (this.quiet) return; // the next call follows at once
		const at = document.activeElement;
		this.button.disabled = false;
		if (at === this.stop || (this.held && at === document.body)) this.button.focus();
		this.stop.hidden = true;
		this.ticker.textContent = "";
	}

	fail(text) {
		this.error.textContent = text;
		if (text) this.error.scrollIntoView({block: "nearest"});
	}

	/**
	 * The answer to `question(signal)`: {response, answer, time, text}; null if it failed, undefined if it was stopped
	 * or replaced by another question. `text` is the JSON as it came if a browser cannot read all of it.
	 */
	async run(question) {
		this.abort?.abort();
		const abort = (this.abort = new AbortController()), began = performance.now();
		abort.signal.id = `page-${Math.random().toString(36).slice(2)}`;
		this.fail("");
		this.held = document.activeElement === this.button;
		this.button.disabled = true;
		this.stop.hidden = false;
		const ticking = setInterval(() => this.quiet || abort !== this.abort || this.tick(began), 200);
		this.queue = this.status.textContent = "";
		try {
			const response = await question(abort.signal), took = performance.now() - began, {answer, text} = await readAnswer(response);
			if (abort !== this.abort) return;
			const time = timing(response, took);
			fill(this.times, timeBar(time));
			this.status.textContent = this.quiet ? "" : "Answered.";
			return {response, answer, time, text};
		} catch (error) {
			if (abort !== this.abort) return;
			fill(this.times);
			const stopped = error.name === "AbortError";
			this.status.textContent = stopped ? "Stopped." : "";
			if (stopped) return;
			this.fail(error.message);
			return null;
		} finally {
			clearInterval(ticking);
			if (abort === this.abort) this.rest();
		}
	}

	tick(began) {
		const took = performance.now() - began, told = `Waiting${this.queue}`;
		if (this.status.textContent !== told) this.status.textContent = told; // read aloud, unlike seconds
		this.ticker.textContent = ` ${(took / 1000).toFixed(1)} s`;
		if (took < 1000 || this.looking) return;
		this.looking = true;
		askJson(`stats?request=${this.abort.signal.id}`).then(({place}) => (this.queue = place ? ` · place ${place} in the queue` : place === 0 ? " · being answered" : "")).catch(() => {}).finally(() => setTimeout(() => (this.looking = false), 1000));
	}
}

async function readAnswer(response) {
	const type = response.headers.get("Content-Type") ?? "";
	if (response.status === 204) return {answer: null};
	if (!/[/+]json/.test(type)) return {answer: await (/^text|json/.test(type) ? response.text() : response.blob())};
	return readJson(await response.text());
}
