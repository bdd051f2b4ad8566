// A call as code, in any language that the server writes, with or without the user's key.

import { ask, catalogue, key } from "./api.js";
import { details, make, select, textBlock } from "./dom.js";

const FILES = { python: "py", javascript: "mjs", typescript: "ts", axios: "mjs", java: "java", go: "go", r: "R", ruby: "rb", c: "c", csharp: "cs", php: "php", curl: "sh" };

/** What to ask for the code of a call with a JSON body. */
export function codeOf(language, own, url, text, method = "POST") {
  const body = method === "GET" ? undefined : JSON.parse(text);
  return { path: `client/${language}`, body: JSON.stringify({ path: `/${url}`, method, body, ...(own ? { key: own } : {}) }) };
}

/** `question(language, key)` is what to ask for code in a language: {path, body}; nothing for what cannot be written. */
export class Code {
  constructor(question, summary = "This call as code") {
    this.question = question;
    this.language = select("Language", [], () => this.show());
    this.withKey = make("input", { type: "checkbox", onchange: () => this.show() });
    this.block = textBlock("Code of this call", () => `call.${FILES[this.language.querySelector("select").value] ?? "txt"}`);
    const content = [make("div", { className: "bar" }, this.language, make("label", {}, this.withKey, "with my key")), this.block];
    this.element = summary ? details(summary, ...content) : make("div", {}, ...content);
    this.element.classList.add("code");
    this.element.ontoggle = () => this.show();
  }

  /** Ask once the user pauses, rather than at each letter typed. */
  soon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.show(), 200);
  }

  async show() {
    const list = this.language.querySelector("select");
    if (list.options.length !== catalogue.languages.length) list.replaceChildren(...catalogue.languages.map((one) => make("option", { value: one.id, textContent: one.name })));
    if (this.element.open === false) return;
    const turn = (this.turn = (this.turn ?? 0) + 1);
    this.withKey.disabled = !key.get();
    try {
      const own = this.withKey.checked ? key.get() : null, asked = this.question(list.value, own);
      if (!asked) return this.block.say("");
      const code = await (await ask(asked.path, asked.body ? { method: "POST", body: asked.body, headers: { "Content-Type": "application/json" } } : {})).text();
      if (turn === this.turn) this.block.say(own ? code.replaceAll("YOUR_KEY", own) : code);
    } catch (error) {
      if (turn === this.turn) this.block.say(error.message);
    }
  }
}
