// Connect: the address of all that is served and code that calls it; `#connect/api` reads the OpenAPI document.

import { BASE, askJson, catalogue, path } from "./api.js";
import { Code } from "./code.js";
import { copy, button, make, option } from "./dom.js";

/** All that can be called: {group, name, url, client}. */
function targets() {
  const model = (group) => ({ name }) => ({ group, name, url: `v1/models/${path(name)}:predict`, client: (language) => `v1/models/${path(name)}/client/${language}` });
  return [
    ...catalogue.deployments.map(({ id }) => ({ group: "Pictures", name: id, url: `${path(id)}/predict`, client: (language) => `${path(id)}/client/${language}` })),
    ...catalogue.models.map(model("Models")),
    ...catalogue.pipelines.map(model("Pipelines")),
    ...catalogue.handlers.map((one) => ({ group: "Handlers", name: one.path, url: one.path.slice(1), method: one.methods[0],
      client: (language) => `client/${language}?${new URLSearchParams({ path: one.path })}` })),
  ];
}

export async function show(root, [group, name]) {
  if (group === "api") {
    const { showApi } = await import("./openapi.js");
    return showApi(root, tabs("api"), await askJson("openapi.json"));
  }
  const all = targets(), one = all.find((each) => each.group.toLowerCase() === group && each.name === name) ?? all[0];
  if (!one) {
    root.replaceChildren(tabs("code"), make("p", { className: "empty", textContent: "Nothing is served yet." }));
    return null;
  }
  const list = make("select", { id: "target", onchange: () => (location.hash = `#connect/${list.value}`) });
  for (const each of all) {
    const last = list.lastElementChild?.label === each.group ? list.lastElementChild : list.appendChild(make("optgroup", { label: each.group }));
    last.append(option(`${each.group.toLowerCase()}/${encodeURIComponent(each.name)}`, each.name, each === one));
  }
  const address = String(new URL(one.url, BASE)), code = new Code((language) => ({ path: one.client(language) }), "");
  const copying = button("Copy", () => copy(address, copying));
  root.replaceChildren(tabs("code"), make("div", { className: "bar" }, make("label", {}, "Call ", list)),
    make("p", {}, make("strong", { textContent: `${one.method ?? "POST"} ` }), make("code", { textContent: address }), " ", copying),
    make("p", { className: "soft" }, "Send your key as ", make("code", { textContent: "Authorization: Bearer YOUR_KEY" }), " or ", make("code", { textContent: "x-api-key: YOUR_KEY" }), "."), code.element);
  await code.show();
  return null;
}

const tabs = (part) => make("p", { className: "bar" }, make("a", { href: "#connect", textContent: "Code", "aria-current": part === "code" ? "page" : null }), make("a", { href: "#connect/api", textContent: "The whole API", "aria-current": part === "api" ? "page" : null }),
  make("a", { href: String(new URL("openapi.json", BASE)), textContent: "openapi.json" }));
