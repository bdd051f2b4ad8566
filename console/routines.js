// A chain of routines: fields made from their declarations, in an order that can be changed.

import {catalogue} from "./api.js";
import {button, fill, make, select} from "./dom.js";
import {field} from "./fields.js";

export class Chain {
	constructor(onchange) {
		Object.assign(this, {onchange, steps: []});
		this.list = make("ol.routines", {label: "Routines, in order"});
		const choice = select("Routine", [["", "add one…"], ...catalogue.routines.map((one) => one.name)], (name) => this.add(name));
		this.adder = choice.lastChild;
		this.element = make("div", choice, this.list);
	}

	add(name) {
		this.adder.value = "";
		const declared = catalogue.routines.find((one) => one.name === name);
		this.steps.push({declared, values: Object.fromEntries(declared.arguments.map((one) => [one.name, one.default ?? (one.required && one.kind === "number" ? 0.5 : null)]))});
		this.changed();
	}

	/** As in a request: [{name, arguments}]. */
	get value() {
		return this.steps.map(({declared, values}) => ({
			name: declared.name, arguments: Object.fromEntries(Object.entries(values).filter(([, value]) => value !== null))}));
	}

	changed() {
		fill(this.list, this.steps.map((step, index) => this.row(step, index)));
		this.onchange();
	}

	row(step, index) {
		const move = (by) => {
			const [own] = this.steps.splice(index, 1);
			if (by !== null) this.steps.splice(Math.max(0, index + by), 0, own);
			this.changed();
			this.focus(by === null ? index : this.steps.indexOf(own), by);
		};
		const mover = (text, label, by) => button(text, () => move(by), {ariaLabel: `${label} ${step.declared.name}`});
		return make("li", {title: step.declared.doc}, make("strong", step.declared.name), step.declared.arguments.map((one) => this.field(step, one)),
			mover("↑", "Earlier:", -1), mover("↓", "Later:", 1), mover("✕", "Remove", null));
	}

	/** After a redraw the focus stays at the pressed button, or nearby if its routine is gone. */
	focus(index, by) {
		const rows = this.list.children, buttons = rows[Math.min(index, rows.length - 1)]?.querySelectorAll("button");
		(buttons?.[{"-1": 0, 1: 1}[by] ?? 2] ?? this.adder).focus();
	}

	field(step, {name, kind, minimum, maximum, doc}) {
		const input = field(kind, step.values[name], {placeholder: doc, title: doc, min: minimum, max: maximum});
		input.oninput = () => {
			step.values[name] = input.read();
			this.onchange();
		};
		return make("label", make("small", name), input);
	}
}
