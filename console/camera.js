// The camera: one picture, or live with one request in flight.

import {button, drawOn, make, toBlob} from "./dom.js";

export class Camera {
	constructor(take, caller) {
		Object.assign(this, {take, caller});
		this.button = button("Camera", () => (this.stream ? this.end() : this.begin()));
		this.video = make("video", {muted: true, playsInline: true, autoplay: true, label: "The camera's picture"});
		this.liver = button("Live", () => this.setLive(!this.live), {ariaPressed: "false"});
		this.rate = make("span.soft");
		caller.stop.addEventListener("click", () => this.setLive(false));
		this.element = make("div.bar.card", {hidden: true}, this.video, button("Take a picture", () => this.shoot()), this.liver, this.rate, button("Close the camera", () => this.end()));
	}

	async begin() {
		this.caller.fail("");
		if (!navigator.mediaDevices) return this.caller.fail("Browsers allow the camera only on https pages and on localhost.");
		if (this.wanted) return; // the user is being asked
		this.wanted = true;
		this.stream = await navigator.mediaDevices.getUserMedia({video: {facingMode: "environment", width: {ideal: 1280}}})
			.catch((error) => this.caller.fail(`The camera cannot be used: ${error.message}`));
		if (!this.stream || !this.wanted) return this.end(); // refused, or the user left the panel
		this.stream.getVideoTracks()[0].onended = async () => {
			this.end();
			await this.running; // it takes errors away
			this.caller.fail("The camera has gone.");
		};
		this.element.hidden = false;
		this.video.srcObject = this.stream;
	}

	end() {
		this.wanted = false;
		this.setLive(false);
		for (const track of this.stream?.getTracks() ?? []) track.stop();
		this.stream = null;
		this.element.hidden = true;
	}

	async shoot() {
		const {live, video} = this, {videoWidth: width, videoHeight: height} = video;
		if (!width) return;
		const shot = await toBlob(drawOn(make("canvas"), video, width, height), "image/jpeg", 0.85);
		if (live === this.live) await this.take((this.shot = shot));
	}

	setLive(live) {
		this.caller.quiet = live;
		if (this.live && !live) this.caller.rest();
		this.live = live && {};
		this.liver.ariaPressed = String(live);
		this.rate.textContent = "";
		if (live) this.running = this.run(this.live);
	}

	async run(live) {
		let last = performance.now(), rate = 0;
		while (this.live === live) {
			await this.shoot();
			if (this.caller.error.textContent) this.setLive(false);
			const now = performance.now(), one = 1000 / Math.max(1, now - last);
			rate = rate ? rate * 0.8 + one * 0.2 : one;
			last = now;
			if (this.live) this.rate.textContent = `${rate.toFixed(1)} fps`;
			await new Promise((done) => requestAnimationFrame(done));
		}
	}
}
