// Connect: addresses and code of all that is served; `#connect/api` reads the OpenAPI document.

import {BASE, KINDS, askJson, findServed, key, load, nothing, path} from "./api.js";
import {Code, codeOf} from "./code.js";
import {bar, copyButton, fill, link, make, option} from "./dom.js";

export async function show(root, names) {
	if (names[0] === "api") {
		const {showApi} = await load("openapi");
		return showApi(root, tabs("api"), await askJson("openapi.json"));
	}
	const found = findServed(names);
	if (!found) return fill(root, tabs("code"), make("p.empty", nothing(names.at(-1))));
	const {kind, one} = found, url = kind.callOf(one.name), method = one.methods?.[0];
	const groups = KINDS.map(({id, title, list: all}) => all().length > 0 && make("optgroup", {label: title}, all().map((each) => option(`${id}/${path(each.name)}`, each.name, each === one))));
	const list = make("select", {id: "target", onchange: () => (location.hash = `#connect/${list.value}`)}, groups);
	const address = String(new URL(url, BASE)), code = new Code((own) => codeOf(own, url, undefined, method), "");
	fill(root, tabs("code"), bar(make("label", "Call ", list)),
		make("p", make("strong", `${method ?? "POST"} `), make("code", address), " ", copyButton(() => address)),
		key.get() && make("p.soft", "Send your key as ", make("code", "Authorization: Bearer YOUR_KEY"), " or ", make("code", "x-api-key: YOUR_KEY"), "."), code.element);
	return code.show();
}

const tab = (text, href, current) => make("a", {href, ariaCurrent: current ? "page" : null}, text);

const tabs = (part) => make("p.bar", tab("Code", "#connect", part === "code"), tab("The whole API", "#connect/api", part === "api"), link("../openapi.json", "openapi.json"));
