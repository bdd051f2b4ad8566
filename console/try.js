// Try: a list of all that is served, the choice beside it. `#try/shapes`, `#try/models/shapes`.

import {KINDS, findServed, load, nothing, onCatalogue, path, refresh} from "./api.js";
import {$, dot, fill, fits, make, search} from "./dom.js";
import {morph, poll} from "./live.js";

const addressOf = (kind, name) => `#try/${findServed([name]).kind.id === kind ? "" : `${kind}/`}${path(name)}`;

let shown = null; // {visit, names, state, leave}: what the panel shows

export async function show(root, names) {
	if (!$("#panel")) {
		fill(root, make("div.sides", make("div.list", search("Search what is served", list), make("div.groups")), make("div", {id: "panel"})));
		shown = null;
	}
	const visit = {};
	const look = () => {
		list();
		if (shown?.visit !== visit) return;
		const now = findServed(shown.names);
		if (now?.one.state !== shown.state) choose(now && shown.state === "ready" ? shown.names : names, visit);
	};
	const chosen = choose(names, visit);
	$(".groups [aria-current]")?.scrollIntoView({block: "nearest"});
	await chosen;
	if (shown?.visit === visit && $(".groups [aria-current]:focus")) $("#panel h2")?.focus();
	const end = onCatalogue(look);
	if ($("#panel")) look();
	let turn = 0;
	const rest = poll(() => turn++ && refresh().catch(({status}) => status !== 401), () => 15);
	return () => {
		end();
		rest();
		if (shown?.visit !== visit) return;
		shown.leave?.();
		shown = null;
	};
}

async function choose(names, visit) {
	const found = findServed(names), panel = $("#panel");
	shown?.leave?.();
	const own = (shown = {visit, names: found ? [found.kind.id, found.one.name] : names, state: found?.one.state});
	list();
	if (!found) return fill(panel, make("p.empty", nothing(names.at(-1))));
	const leave = await load(found.kind.module).then((module) => shown === own && module.show(panel, found.one)).catch(({message}) => {
		own.state = ""; // try at the next catalogue
		if (shown === own) fill(panel, make("p.error", message));
	});
	if (shown === own) own.leave = leave;
	else if (leave) leave();
}

function list() {
	const wanted = $("input[type=search]").value;
	const parts = KINDS.map(({id, title, list: all}) => {
		const fit = all().filter((one) => fits(one.name, wanted));
		return fit.length && make("section", {label: title}, make("h2", `${title} (${fit.length})`), make("ul", fit.map((one) => make("li",
			make("a", {href: addressOf(id, one.name), title: one.reason, "aria-current": String(shown?.names) === String([id, one.name]) ? "page" : null}, dot(one.state), one.name)))));
	}).filter(Boolean);
	morph($(".groups"), make("div.groups", parts.length ? parts : make("p.soft", wanted ? "Nothing by that name." : "")));
}
