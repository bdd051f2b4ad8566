// The server: its address, the key, requests and their errors.

export const BASE = new URL("..", location.href.split("#")[0]);

// A browser may store nothing for a framed page: then the key lasts as long as the page.
let own = null;
const stores = ["sessionStorage", "localStorage"].flatMap((name) => {
	try {
		return [window[name]];
	} catch {
		return [];
	}
});
export const [session, lasting] = stores;
const NAME = `serving-key ${BASE.pathname}`;

export const key = {
	get: () => stores.map((store) => store.getItem(NAME)).find(Boolean) ?? own,
	set(value, remember) {
		for (const store of stores) store.removeItem(NAME);
		own = value;
		(remember ? lasting : session)?.setItem(NAME, value);
	},
};

export function decoded(text) {
	try {
		return decodeURIComponent(text);
	} catch {
		return text;
	}
}

/** Whether the address had a key. */
export function takeKeyFromAddress() {
	const found = /^#key=([^&]+)/.exec(location.hash);
	if (!found) return false;
	key.set(decoded(found[1]));
	history.replaceState(null, "", location.pathname + location.search);
	return true;
}

const serverError = (text, status, id) => Object.assign(new Error(id && !text.includes(id) ? `${text}\nRequest ${id}` : text), {status});

export const contact = {seen: Date.now(), gone: false};

function unreachable(error) {
	if (error.name === "AbortError") throw error;
	if (error.name === "SyntaxError") throw new Error("The server has a newer page: reload this one.");
	contact.gone = true;
	throw new Error("The server cannot be reached.");
}

export const load = (name) => import(`./${name}.js`).catch(unreachable);

let askForKey = async () => {};
export const whenKeyIsNeeded = (asks) => (askForKey = asks);

function unreadable() {
	throw new Error("The file cannot be read.");
}

export const toBase64 = async (blob) => new Uint8Array(await blob.arrayBuffer().catch(unreadable)).toBase64();

/** `fetch`; a wrong request or a lost file does not mean a lost server. */
async function send(url, options) {
	try {
		return await fetch(url, options);
	} catch (error) {
		if (error.name === "TypeError") await new Request(url, options).blob().catch(unreadable);
		unreachable(error);
	}
}

/**
 * Ask the server. Throws an Error with its words and `status`; a 401 asks the user for the key, and then
 * asks again. `page` says whether the question is the page's own, which is not counted, or the user's call.
 */
export async function ask(path, {page = true, headers = {}, ...options} = {}) {
	const tried = key.get();
	const id = options.signal?.id, sent = {...(page && {"X-Serving-Page": "1"}), ...(id && {"X-Request-Id": id}), ...headers, ...(tried && {Authorization: `Bearer ${tried}`})};
	const unsent = /[^ -~]/.test(tried ?? "");
	const response = !unsent && await send(new URL(path, BASE), {...options, headers: sent});
	if (response && !/max-age/.test(response.headers.get("Cache-Control"))) Object.assign(contact, {seen: Date.now(), gone: false});
	if (response.ok) return response;
	const error = unsent ? serverError("A key may only have printable ASCII characters.", 401) : await readError(response);
	if (error.status !== 401) throw error;
	// An answer to a key that has since been replaced says nothing about the new one.
	if (key.get() === tried && !(await askForKey(tried ? error.message : "", page))) throw error;
	return ask(path, {page, headers, ...options});
}

export const post = (url, body, signal, page = false) => ask(url, {page, method: "POST", body, signal, headers: {"Content-Type": "application/json"}});

// Texts, kept; values that JSON lacks; integers too long for JavaScript.
const TOKENS = /"[^"\\]*(?:\\[^][^"\\]*)*(?:"|\\?$)|-?Infinity|NaN|(?<![\d.eE+-])-?\d{16,}(?![\d.eE])/g;

/** JSON with NaN, infinities and long integers as texts: {answer}, and its original `text` if it has any. */
export function readJson(text) {
	const told = text.replace(TOKENS, (found) => (found[0] === '"' || Number.isSafeInteger(Number(found)) ? found : `"${found}"`));
	return {answer: JSON.parse(told), text: told === text ? undefined : text};
}

export const askJson = async (path, options) => (await ask(path, options)).json();

async function readError(response) {
	const text = await response.text();
	let said = text || `${response.status} ${response.statusText}`, id = response.headers.get("X-Request-Id") ?? "";
	try {
		const body = JSON.parse(text), error = body.error?.message ?? body.error ?? body.body?.error ?? text;
		said = [error, ...(body.details ?? [])].map((one) => (typeof one === "string" ? one : JSON.stringify(one))).join("\n");
		id = body.request_id ?? id;
	} catch {
		// no JSON: the text itself
	}
	return serverError(said, response.status, id);
}

/** The times that the server tells: ms by part, and by node of a pipeline. */
export function timing(response, took) {
	const told = response.headers.get("Server-Timing") ?? "", parts = {};
	for (const [, name, node, dur] of told.matchAll(/([\w-]+)(?:;desc="(.*?)")?;dur=([\d.]+)/g)) {
		parts[node ? `node-${decodeURIComponent(node)}` : name] = Number(dur);
	}
	return {took, parts, id: response.headers.get("X-Request-Id") ?? ""};
}

// --- what is served ---

export const catalogue = {key: {}}; // what `GET /deployments` answers
const listeners = new Set();

/** Be told of each new reading; returns what ends it. */
export function onCatalogue(listener) {
	listeners.add(listener);
	return () => listeners.delete(listener);
}

let again = 0;

/** Read what is served; again each second until all models are loaded. */
export async function refresh(signal) {
	const {deployments, handlers} = Object.assign(catalogue, await askJson("deployments", {signal}));
	for (const one of [...deployments, ...handlers]) one.name = one.id ?? one.path;
	for (const listener of [...listeners]) listener();
	clearTimeout(again);
	if (catalogue.loading.waiting.length) again = setTimeout(keepUp, 1000);
}

function keepUp() {
	refresh().catch((error) => error.status !== 401 && (again = setTimeout(keepUp, 5000)));
}

const callOfModel = (name) => `v1/models/${path(name)}:predict`;

/** What can be called: title, list in the catalogue, path of a call, module to try it. */
export const KINDS = [["Pictures", "deployments", (name) => `${path(name)}/predict`, "pictures"], ["Models", "models", callOfModel, "tensors"],
	["Pipelines", "pipelines", callOfModel, "pipelines"], ["Handlers", "handlers", (name) => name.slice(1), "handlers"]]
	.map(([title, list, callOf, module]) => ({id: title.toLowerCase(), title, list: () => catalogue[list], callOf, module}));

/** What `[name]` or `[kind, name]` chooses; for neither, the first to show. */
export function findServed(names) {
	const [name, group] = names.toReversed(), all = KINDS.flatMap((kind) => kind.list().map((one) => ({kind, one}))), ready = all.filter(({one}) => one.state === "ready");
	if (name !== undefined) return all.find(({kind, one}) => one.name === name && (!group || kind.id === group));
	return ready.find(({one}) => one.default) ?? ready[0] ?? all[0];
}

export const nothing = (name) => (name ? `There is nothing called ‘${name}’ here.` : "Nothing is served yet: the config names no models.");

export const path = encodeURIComponent;
