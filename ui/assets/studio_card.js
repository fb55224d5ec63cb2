// One picture of the grid: its thumbnail, its tick, its caption and what is to be known of it.
(() => {
  "use strict";
  const { h, setText, studio } = window.safelight;

  const thumb = (row) => `${row.url}&thumb=1`;
  const MOST_KEPT = 800;
  const kept = new Map(); // address -> <img> of thumbnails that came, the latest last: scrolling back asks for none again

  function image_of(row) {
    const address = row ? thumb(row) : "";
    const old = kept.get(address);
    if (old) return old;
    const image = h("img", { alt: "", decoding: "async", draggable: "false" });
    image.addEventListener("load", () => {
      kept.set(image.getAttribute("src"), image);
      if (kept.size > MOST_KEPT) kept.delete(kept.keys().next().value);
    });
    return image;
  }

  studio.show_tokens = (node, tokens) => {
    const limit = tokens <= 75 ? 75 : tokens <= 150 ? 150 : 225;
    setText(node, `${tokens}/${limit}`);
    node.title = `${tokens} tokens. One piece holds 75; a run reads up to its “Max token length”.`;
    node.classList.toggle("sl-busy", tokens > studio.max_tokens());
  };

  /** `grid` has what a card asks of its grid: current(), set_current, toggle, select_range, box_key, columns. */
  studio.make_card = (name, grid) => {
    const image = image_of(studio.row(name));
    const open = h("button", { type: "button", class: "sl-thumb", "data-name": name }, image);
    const tick = h("input", { type: "checkbox", tabindex: "-1", "aria-label": `Select ${name}` });
    const box = h("textarea", { class: "sl-field", "aria-label": `Caption of ${name}`, spellcheck: "false", "data-name": name });
    const cut = name.lastIndexOf("/") + 1;
    const file = h("span", { class: "sl-file", title: name }, h("span", {}, name.slice(0, cut)), h("span", {}, name.slice(cut)));
    const facts = h("span", {});
    const tokens = h("span", { class: "sl-tokens" });
    const state = h("span", { class: "sl-saved", role: "status" });
    const problem = h("span", { class: "sl-problem" });
    const node = h(
      "li",
      { class: "sl-cell sl-picture", "data-picture": name },
      open,
      h("label", { class: "sl-tick" }, tick),
      h("div", { class: "sl-words" }, box, h("p", { class: "sl-small-facts" }, file, state), h("p", { class: "sl-small-facts" }, facts, tokens, problem)),
    );
    let drawn = null;

    function describe(row) {
      const problems = studio.problems_of(row);
      const extra = [row.mark ? "cropped" : "", row.mask ? "mask" : ""].filter(Boolean);
      node.classList.toggle("sl-broken", Boolean(row.fault));
      setText(facts, [row.width ? `${row.width}×${row.height}` : "", ...extra].filter(Boolean).join(" · "));
      studio.show_tokens(tokens, row.tokens);
      setText(problem, problems.length ? `! ${problems[0]}${problems.length > 1 ? ` (+${problems.length - 1})` : ""}` : "");
      problem.title = problems.join("\n");
      const words = [`Look at ${name}`, row.width ? `${row.width} by ${row.height}` : "", row.caption ? "" : "no caption", ...problems];
      open.setAttribute("aria-label", [...new Set(words.filter(Boolean))].join(", "));
    }

    const card = {
      node,
      open,
      box,
      move(index, count, left, top) {
        node.style.transform = `translate(${left}px, ${top}px)`;
        node.setAttribute("aria-posinset", String(index + 1));
        node.setAttribute("aria-setsize", String(count));
      },
      load() {
        const row = studio.row(name);
        if (row && !row.fault && image.getAttribute("src") !== thumb(row)) image.src = thumb(row);
      },
      leave() {
        if (!image.complete) image.removeAttribute("src"); // else it would come before those that are in sight now
        node.remove();
      },
      show(row) {
        if (!row) return;
        const selected = studio.selection.has(name);
        tick.checked = selected;
        node.classList.toggle("sl-selected", selected);
        open.tabIndex = name === grid.current() ? 0 : -1;
        const looks = [row, row.stamp, studio.problems, studio.max_tokens(), studio.builtin];
        if (drawn && looks.every((part, index) => part === drawn[index])) return;
        drawn = looks;
        box.readOnly = studio.builtin;
        const text = studio.typed(row);
        if (box.value !== text) box.value = text;
        box.dataset.saved = row.caption;
        describe(row);
      },
      tell(words, tone = "") {
        setText(state, words);
        state.className = `sl-saved ${tone}`;
      },
    };

    open.addEventListener("click", (event) => {
      grid.set_current(name);
      if (event.shiftKey) grid.select_range(name);
      else if (event.ctrlKey || event.metaKey || (studio.selection.size && event.detail)) grid.toggle(name);
      else studio.open_viewer(name);
    });
    open.addEventListener("focus", () => grid.set_current(name));
    tick.addEventListener("click", (event) => {
      grid.set_current(name);
      if (event.shiftKey) grid.select_range(name);
      else grid.toggle(name);
    });
    box.addEventListener("focus", () => {
      grid.set_current(name);
      studio.complete(box);
    });
    box.addEventListener("input", () => studio.type(name, box.value));
    box.addEventListener("blur", () => studio.save(name));
    box.addEventListener("keydown", (event) => grid.box_key(event, name));
    return card;
  };
})();
