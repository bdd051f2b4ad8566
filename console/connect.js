// Connect: addresses and code of all that is served; `#connect/api` reads the OpenAPI document.

import {BASE, askJson, catalogue, key, load, nothing, path} from "./api.js";
import {Code, codeOf} from "./code.js";
import {bar, button, copy, fill, make, option} from "./dom.js";

function targets() {
	const model = (group) => ({name}) => ({group, name, url: `v1/models/${path(name)}:predict`});
	return [
		...catalogue.deployments.map(({name}) => ({group: "Pictures", name, url: `${path(name)}/predict`})),
		...catalogue.models.map(model("Models")),
		...catalogue.pipelines.map(model("Pipelines")),
		...catalogue.handlers.map(({name, methods}) => ({group: "Handlers", name, url: name.slice(1), method: methods[0]})),
	];
}

export async function show(root, [group, name]) {
	if (group === "api") {
		const {showApi} = await load("openapi");
		return showApi(root, tabs("api"), await askJson("openapi.json"));
	}
	const all = targets(), one = all.find((each) => each.group.toLowerCase() === group && each.name === name) ?? (name === undefined ? all[0] : null);
	if (!one) return fill(root, tabs("code"), make("p.empty", nothing(name)));
	const list = make("select", {id: "target", onchange: () => (location.hash = `#connect/${list.value}`)});
	for (const each of all) {
		const last = list.lastElementChild?.label === each.group ? list.lastElementChild : list.appendChild(make("optgroup", {label: each.group}));
		last.append(option(`${each.group.toLowerCase()}/${path(each.name)}`, each.name, each === one));
	}
	const address = String(new URL(one.url, BASE)), code = new Code((language, own) => codeOf(own, one.url, undefined, one.method), "");
	const copying = button("Copy", () => copy(address, copying));
	fill(root, tabs("code"), bar(make("label", "Call ", list)),
		make("p", make("strong", `${one.method ?? "POST"} `), make("code", address), " ", copying),
		key.get() && make("p.soft", "Send your key as ", make("code", "Authorization: Bearer YOUR_KEY"), " or ", make("code", "x-api-key: YOUR_KEY"), "."), code.element);
	return code.show();
}

const tab = (text, href, current) => make("a", {href, "aria-current": current ? "page" : null}, text);

const tabs = (part) => make("p.bar", tab("Code", "#connect", part === "code"), tab("The whole API", "#connect/api", part === "api"),
	tab("openapi.json", String(new URL("openapi.json", BASE))));
