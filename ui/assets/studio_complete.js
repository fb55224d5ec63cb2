// Autocomplete of tags in every caption box and tag field: the tag at the caret, from the tags of the open dataset.
// A field with data-single is for one tag: no comma follows what was taken.
// Arrow down steps into the list, Enter or Tab takes what is chosen there, Esc closes it. Nothing is ever chosen by itself.
(() => {
  "use strict";
  const { h, setText, studio } = window.safelight;
  const MOST = 8;
  const boxes = new WeakSet();
  const list = h("ul", { id: "studio-suggestions", class: "sl-suggestions", role: "listbox", "aria-label": "Tags of this dataset", hidden: true });
  const told = h("p", { class: "sl-hidden", role: "status" });
  let box = null;
  let found = [];
  let active = -1;

  /** Begin and end of the tag that the caret is in, and the tag up to the caret. */
  function at_caret(field) {
    const caret = field.selectionStart;
    if (caret === null || caret !== field.selectionEnd) return null;
    const begin = field.value.lastIndexOf(",", caret - 1) + 1;
    const next = field.value.indexOf(",", caret);
    return { begin, end: next < 0 ? field.value.length : next, text: field.value.slice(begin, caret).trimStart() };
  }

  /** Tags that begin with the text, then those of which another word does; the most common first. */
  function matches(text, others) {
    const wanted = text.toLowerCase();
    const first = [];
    const later = [];
    for (const [tag, pictures] of studio.tags || []) {
      const lower = tag.toLowerCase();
      if (lower === wanted || others.has(lower)) continue;
      if (lower.startsWith(wanted)) first.push([tag, pictures]);
      else if (later.length < MOST && (lower.includes(` ${wanted}`) || lower.includes(`(${wanted}`))) later.push([tag, pictures]);
      if (first.length >= MOST) break;
    }
    return [...first, ...later].slice(0, MOST);
  }

  function close() {
    list.hidden = true;
    active = -1;
    found = [];
    if (box) for (const name of ["aria-controls", "aria-activedescendant"]) box.removeAttribute(name);
    box = null;
  }

  function choose(index) {
    active = index;
    [...list.children].forEach((item, place) => item.setAttribute("aria-selected", String(place === index)));
    if (index >= 0) {
      box.setAttribute("aria-activedescendant", list.children[index].id);
      list.children[index].scrollIntoView({ block: "nearest" });
    } else box.removeAttribute("aria-activedescendant");
  }

  function take(tag) {
    const field = box;
    const place = at_caret(field);
    close();
    if (!place) return;
    const lead = place.begin && field.value[place.begin - 1] === "," ? " " : "";
    const last = place.end === field.value.length;
    field.setRangeText(lead + tag + (last && !("single" in field.dataset) ? ", " : ""), place.begin, place.end, "end");
    field.dispatchEvent(new Event("input", { bubbles: true }));
    close(); // that input would open the list again
  }

  function show(field) {
    const place = at_caret(field);
    const others = new Set(field.value.split(",").map((tag) => tag.trim().toLowerCase()));
    found = place?.text ? matches(place.text, others) : [];
    if (!found.length) return close();
    box = field;
    // a dialog covers everything that is not in it
    (field.closest("dialog") || document.body).append(list, told);
    list.replaceChildren(
      ...found.map(([tag, pictures], index) =>
        h(
          "li",
          { id: `studio-suggestion-${index}`, role: "option", "aria-selected": "false", onpointerdown: (event) => event.preventDefault(), onclick: () => take(tag) },
          h("span", {}, tag),
          h("span", { class: "sl-muted" }, pictures.toLocaleString("en")),
        ),
      ),
    );
    list.hidden = false;
    active = -1;
    field.setAttribute("aria-controls", list.id);
    field.removeAttribute("aria-activedescendant");
    setText(told, `${found.length} ${found.length === 1 ? "tag" : "tags"} of this dataset. Arrow down to choose.`);
    put_beside(field);
  }

  function put_beside(field) {
    const place = field.getBoundingClientRect();
    const height = list.offsetHeight;
    const above = place.bottom + height > window.innerHeight && place.top > height;
    list.style.left = `${Math.max(8, Math.min(place.left, window.innerWidth - list.offsetWidth - 8))}px`;
    list.style.top = `${above ? place.top - height - 2 : place.bottom + 2}px`;
  }

  function key(event) {
    if (list.hidden || event.target !== box) return;
    const { key: name } = event;
    if (event.ctrlKey || event.metaKey || event.altKey) return close();
    if (name === "ArrowDown") choose((active + 1) % found.length);
    else if (name === "ArrowUp" && active >= 0) choose(active - 1);
    else if ((name === "Enter" || name === "Tab") && active >= 0) take(found[active][0]);
    else if (name === "Escape") close();
    else {
      if (name === "Enter") close();
      return;
    }
    event.preventDefault();
    event.stopImmediatePropagation();
  }

  studio.completer = (field) => {
    if (boxes.has(field)) return;
    boxes.add(field);
    field.setAttribute("aria-autocomplete", "list");
    field.setAttribute("autocomplete", "off");
    field.addEventListener("input", (event) => {
      if (!event.isComposing) show(field);
    });
    field.addEventListener("keydown", key, { capture: true });
    field.addEventListener("blur", () => box === field && close());
  };
  window.addEventListener("scroll", () => box && put_beside(box), { passive: true, capture: true });
  window.addEventListener("resize", close);
})();
