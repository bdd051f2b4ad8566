// The page's frame: parts and their addresses, the key, loading models, errors not shown elsewhere.

import {catalogue, contact, decoded, key, load, onCatalogue, refresh, takeKeyFromAddress, whenKeyIsNeeded} from "./api.js";
import {$, button, duration, fill, make, several} from "./dom.js";

const links = [...document.querySelectorAll("nav a")];

let shown = {turn: 0};

/** Show the part of the address: `#try/shapes` is `try` with `["shapes"]`; returns what ends it. */
async function route() {
	const [wanted, ...rest] = location.hash.split("/"), names = rest.filter(Boolean).map(decoded), turn = ++shown.turn;
	const link = links.find((one) => one.hash === wanted) ?? links[0], part = link.hash.slice(1);
	for (const one of links) one.ariaCurrent = one === link ? "page" : null;
	const module = await load(part).catch((error) => turn === shown.turn && lost(error));
	if (!module || turn !== shown.turn) return;
	shown.leave?.();
	const root = $("#main"), moved = shown.part !== part;
	shown.leave = null;
	shown.part = part;
	showError("");
	document.title = `${names.at(-1) ?? link.textContent} · serving`;
	if (moved) fill(root);
	const leave = await attempt(() => module.show(root, names));
	if (turn === shown.turn) shown.leave = leave;
	else leave?.(); // another part was chosen meanwhile
}

export async function attempt(work) {
	try {
		return await work();
	} catch (error) {
		if (error.name !== "AbortError") showError(error.message);
	}
}

const showError = (text) => ($("#error").textContent = text);

let asking, declined = false;

/** Ask for the key, once for all requests; true for a new one. Who has cancelled is left alone by the page's own requests. */
function askForKey(reason, own) {
	if (own && declined) return false;
	asking ??= new Promise((done) => {
		const dialog = $("#key-dialog"), input = $("#key-input");
		$("#key-error").textContent = reason;
		$("form").reset();
		input.type = "password";
		dialog.returnValue = "";
		dialog.onclose = () => {
			asking = null;
			const given = dialog.returnValue === "ok" && input.value.trim();
			if (given) key.set(given, $("#key-remember").checked);
			input.value = "";
			declined = !given;
			done(!declined);
		};
		dialog.showModal();
	});
	return asking;
}

function showKey() {
	const {name, only} = catalogue.key;
	$("#whose").textContent = name && name !== "-" ? (only ? `${name}: only ${only.join(", ") || "nothing"}` : name) : "";
	$("#change-key").textContent = key.get() ? "Change key" : "Enter a key";
}

async function changeKey() {
	if (await askForKey("")) await start();
}

function showLoading() {
	const {of, waiting} = catalogue.loading;
	$("#loading").hidden = !waiting.length;
	$("#loading-text").textContent = `${of - waiting.length} of ${of} models loaded; loading ${several(waiting, 3)}`;
	Object.assign($("#loading progress"), {max: of, value: of - waiting.length});
	$('[href="#inbox"]').hidden = !catalogue.deployments.some((one) => one.active_learning);
	$('[href="#manage"]').hidden = !catalogue.key.admin;
	showKey();
}

const start = () => refresh().then(route, lost);

function lost(error) {
	shown.leave = shown.leave?.();
	showError("");
	const [text, action, work] = error.status === 401 ? ["Nothing can be shown without a key, or a login on this site.", "Enter a key", changeKey] : [error.message, "Try again", start];
	showKey();
	fill($("#main"), make("p.empty", text, make("br"), button(action, work, {id: "again", className: "main"})));
}

setInterval(() => {
	const seconds = Math.round((Date.now() - contact.seen) / 1000);
	$("#contact").hidden = !contact.gone;
	$("#ago").textContent = `Last seen ${duration(seconds)} ago.`;
	if (contact.gone && seconds % 5 === 0) refresh(AbortSignal.timeout(4000)).then(() => $("#again")?.click(), () => {}); // it ends before the next
}, 1000);

takeKeyFromAddress();
whenKeyIsNeeded(askForKey);
onCatalogue(showLoading);
$(".skip").onclick = (event) => {
	event.preventDefault(); // the address names a part
	$("#main").focus();
};
$("#key-show").onchange = () => ($("#key-input").type = $("#key-show").checked ? "text" : "password");
$("#change-key").onclick = changeKey;
addEventListener("hashchange", () => {
	declined = false;
	if (takeKeyFromAddress() || !catalogue.deployments) start();
	else route();
});
start();
