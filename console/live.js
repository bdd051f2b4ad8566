// Redrawing in place: only differences are changed; focus, menus and open details stay.

/** Make `old` like `fresh`. Nodes with the same `data-key` are the same; what has `data-whole` is replaced whole. */
export function morph(old, fresh) {
	for (const {name, value} of [...fresh.attributes]) if (name !== "style" && name !== "open" && old.getAttribute(name) !== value) old.setAttribute(name, value);
	for (const {name} of [...old.attributes]) if (name !== "style" && name !== "open" && !fresh.hasAttribute(name)) old.removeAttribute(name);
	if (old.style.cssText !== fresh.style.cssText) old.style.cssText = fresh.style.cssText;
	for (const name of ["onclick", "ontoggle"]) if (fresh[name] || old[name]) old[name] = fresh[name];
	if (!("keep" in old.dataset)) morphChildren(old, fresh);
}

function morphChildren(old, fresh) {
	const focus = document.activeElement, keyed = new Map([...old.children].filter((one) => one.dataset.key).map((one) => [one.dataset.key, one]));
	let at = old.firstChild;
	for (const next of [...fresh.childNodes]) {
		const key = next.dataset?.key, found = key ? keyed.get(key) : at && !at.dataset?.key ? at : null;
		keyed.delete(key); // rows of equal keys stay apart
		if (found && found !== at) old.insertBefore(found, at);
		if (!found || found.nodeName !== next.nodeName) {
			old.insertBefore(next, at);
			continue;
		}
		at = found.nextSibling;
		if (found.nodeType !== Node.ELEMENT_NODE) {
			if (found.data !== next.data) found.data = next.data;
		} else if (!("whole" in found.dataset)) morph(found, next);
		else if (!found.matches(":hover")) found.replaceWith(next); // stays while the pointer is on it
	}
	while (at) {
		const gone = at;
		at = at.nextSibling;
		gone.remove();
	}
	if (focus !== document.activeElement && focus.isConnected) focus.focus({preventScroll: true});
}

/** Work every `seconds()` while the page is visible, until false; returns what ends it. */
export function poll(work, seconds) {
	const ending = new AbortController(), {signal} = ending;
	let timer = 0, busy = false;
	const next = async () => {
		clearTimeout(timer);
		if (busy || signal.aborted || document.hidden) return;
		busy = true;
		try {
			if ((await work()) === false) ending.abort();
		} finally {
			busy = false;
			timer = setTimeout(next, seconds() * 1000);
		}
	};
	document.addEventListener("visibilitychange", next, {signal});
	next();
	return () => ending.abort();
}
