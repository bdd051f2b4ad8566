// A field for a picture, and under it the picture with what /predict finds in it. On any page:
// <script src=".../widget.js" data-predict="https://.../defects/predict" data-key="..."></script>
// where it is to stand in the body, and no module.
{
	const {predict, key} = document.currentScript.dataset;
	const make = (name, set = {}) => Object.assign(document.createElement(name), set);
	const field = make("input", {type: "file", accept: "image/*", ariaLabel: "A picture"});
	const told = make("p"), canvas = make("canvas", {hidden: true}), root = make("div");
	told.setAttribute("role", "status");
	canvas.style.maxWidth = "100%";
	root.append(field, told, canvas);
	document.currentScript.after(root);

	async function ask(file) {
		const headers = key ? {Authorization: `Bearer ${key}`} : {};
		const response = await fetch(predict, {method: "POST", headers, body: file});
		const answer = await response.json().catch(() => ({error: `No answer: ${response.status}`}));
		if (answer.error) throw new Error(answer.error);
		return answer.predictions;
	}

	/** Draw the outline of each prediction, or its box, with its name; x and y are in 0..1. */
	function draw(picture, predictions) {
		Object.assign(canvas, {width: picture.width, height: picture.height, hidden: false});
		const pen = canvas.getContext("2d"), unit = Math.max(picture.width, picture.height) / 100;
		pen.drawImage(picture, 0, 0);
		Object.assign(pen, {lineWidth: unit / 2, font: `${4 * unit}px sans-serif`, lineJoin: "round"});
		for (const {tag, confidence, bound, contour, contours} of predictions.filter((one) => one.bound)) {
			pen.strokeStyle = pen.fillStyle = `hsl(${(tag.id * 137) % 360} 90% 35%)`;
			const shape = new Path2D();
			for (const ring of contours ?? [contour ?? bound]) {
				ring.forEach(([x, y], at) => shape[at ? "lineTo" : "moveTo"](x * picture.width, y * picture.height));
				shape.closePath();
			}
			pen.stroke(shape);
			pen.globalAlpha = 0.25;
			pen.fill(shape, "evenodd");
			pen.globalAlpha = 1;
			const [left, top] = [0, 1].map((axis) => Math.min(...bound.map((corner) => corner[axis])));
			const name = ` ${tag.name} ${Math.round(100 * confidence)} % `, {width} = pen.measureText(name);
			const place = [Math.min(left * picture.width, picture.width - width), Math.max(top * picture.height - 6 * unit, 0)];
			pen.fillRect(...place, width, 5 * unit);
			pen.fillStyle = "white";
			pen.fillText(name, place[0], place[1] + 4 * unit);
		}
		const names = predictions.map(({tag, confidence}) => `${tag.name} (${Math.round(100 * confidence)} %)`);
		told.textContent = names.length ? `Found: ${names.join(", ")}.` : "Nothing was found.";
	}

	let turn = 0; // the answer to a picture that is no longer chosen is left out
	field.onchange = async () => {
		const [file] = field.files, mine = ++turn;
		canvas.hidden = true; // of what was chosen before
		told.textContent = file ? "Looking…" : "";
		if (!file) return;
		try {
			const [picture, predictions] = await Promise.all([createImageBitmap(file), ask(file)]);
			if (mine === turn) draw(picture, predictions);
		} catch (error) {
			if (mine === turn) told.textContent = error.message;
		}
	};
}
