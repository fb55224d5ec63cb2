// The grid of the Dataset tab: thousands of pictures, of which only those in sight are in the page.
(() => {
  "use strict";
  const { h, setText, notify, open_dialog, confirm_dialog, current_tab, keys_off, studio } = window.safelight;

  const GAP = 10;
  const CARD = { captions: { width: 310, height: 158 }, pictures: { width: 148, height: 176 } };
  const MARGIN = 500; // pixels above and below the window that are drawn as well
  const REST_MS = 60; // pictures are asked for once the scrolling has rested this long
  const MAX_WAIT_MS = 180;
  const FACTS_AT_ONCE = 500;

  window.safelight.define("studio_grid", ({ element }) => {
    const remembered = (key, values, fallback) => {
      const kept = window.localStorage.getItem(`safelight-studio-${key}`);
      return kept in values ? kept : fallback;
    };
    let layout = remembered("layout", CARD, "captions");
    let shown = []; // rows that the filter shows, in the order of the grid
    let place = new Map(); // name -> index in shown
    let cards = new Map(); // name -> card of those in the page
    let columns = 1;
    let width = 0; // of the grid; asked once, because asking between changes would lay out the page again each time
    let current = ""; // the picture that the keyboard is at
    let anchor = ""; // where a range of the selection starts

    // ---- the bar above the grid -----------------------------------------------------------------------------------

    const find = h("input", { type: "search", id: "dataset-find", "data-main": true, class: "sl-field", autocomplete: "off", spellcheck: "false", placeholder: "words, tag:x, is:untagged … ( / )" });
    const help = h("button", { type: "button", class: "sl-button sl-plain", "aria-label": "What can be typed into Find", onclick: show_help }, "?");
    const sort = h("select", { id: "dataset-sort", class: "sl-select" }, Object.entries(studio.SORTS).map(([id, [label]]) => h("option", { value: id }, label)));
    sort.value = remembered("sort", studio.SORTS, "name");
    const looks = h("select", { id: "dataset-layout", class: "sl-select" }, h("option", { value: "captions" }, "With captions"), h("option", { value: "pictures" }, "Pictures only"));
    looks.value = layout;
    const count = h("p", { class: "sl-studio-count", role: "status" });
    const all = h("button", { type: "button", class: "sl-button", id: "select-all" }, "Select all");
    const none = h("button", { type: "button", class: "sl-button", id: "select-none" }, "Clear");
    const remove = h("button", { type: "button", class: "sl-button sl-stop", id: "remove-pictures" }, "Remove …");
    const bar = h(
      "div",
      { class: "sl-studio-tools" },
      h("label", { class: "sl-studio-find", for: find.id }, h("span", {}, "Find"), h("span", { class: "sl-joined" }, find, help)),
      h("label", { for: sort.id }, h("span", {}, "Sort"), sort),
      h("label", { for: looks.id }, h("span", {}, "Show"), looks),
      h("div", { class: "sl-actions" }, all, none, remove),
      count,
    );
    const list = h("ul", { class: "sl-wall", "aria-label": "Pictures" });
    const nothing = h("div", { class: "sl-card sl-empty", hidden: true });
    element.replaceChildren(bar, nothing, list);

    const hooks = { current: () => current, set_current, toggle, select_range, box_key };

    // ---- what is shown ------------------------------------------------------------------------------------------

    /** Filters and sorts anew. Not done at every saved caption: a card must not vanish from under the typing hand. */
    function arrange() {
      const { test, fault } = studio.filter(find.value);
      const [, order] = studio.SORTS[sort.value];
      shown = studio.rows.filter(test).sort(order);
      place = new Map(shown.map((row, index) => [row.name, index]));
      studio.shown = shown.map((row) => row.name);
      if (!place.has(current)) current = shown[0]?.name || "";
      studio.filter_fault = fault;
      measure();
      studio.emit("shown");
      tell();
    }

    function tell() {
      const total = studio.rows.length;
      const chosen = studio.selection.size;
      const captions = studio.rows.reduce((sum, row) => sum + (row.caption ? 1 : 0), 0);
      const parts = [shown.length === total ? studio.pictures(total) : `${shown.length.toLocaleString("en")} of ${studio.pictures(total)}`];
      if (total) parts.push(captions === total ? "all with a caption" : `${(total - captions).toLocaleString("en")} without a caption`);
      if (chosen) parts.push(`${chosen.toLocaleString("en")} selected`);
      if (studio.filter_fault) parts.push(studio.filter_fault);
      setText(count, parts.join(" · "));
      count.classList.toggle("sl-bad", Boolean(studio.filter_fault));
      all.disabled = !shown.length;
      none.disabled = !chosen;
      remove.disabled = !chosen || studio.builtin;
      nothing.hidden = shown.length > 0;
      if (!shown.length) tell_nothing(total);
    }

    function tell_nothing(total) {
      if (total) {
        nothing.replaceChildren(h("p", {}, studio.filter_fault || "No picture fits what is typed into Find."), h("button", { type: "button", class: "sl-button", onclick: clear_find }, "Show all"));
      } else if (studio.name) {
        const add = studio.panels.some((panel) => panel.id === "import") ? h("button", { type: "button", class: "sl-button sl-primary", onclick: () => studio.open_panel("import") }, "Add pictures") : null;
        nothing.replaceChildren(h("h3", {}, `${studio.name} has no pictures yet`), h("p", { class: "sl-muted" }, "15 to 50 good pictures are enough for most LoRAs."), add || "");
      } else nothing.replaceChildren(h("p", { class: "sl-muted" }, "Reading the pictures …"));
    }

    function clear_find() {
      find.value = "";
      arrange();
      find.focus();
    }

    function show_help() {
      const rows = studio.FILTER_HELP.map(([typed, what]) => h("tr", {}, h("th", { scope: "row" }, h("code", {}, typed)), h("td", {}, what)));
      open_dialog("What can be typed into Find", h("table", { class: "sl-table" }, h("tbody", {}, rows)), { class: "sl-dialog sl-small" });
    }

    // ---- only what is in sight is in the page ---------------------------------------------------------------------

    const size = () => CARD[layout];
    const row_height = () => size().height + GAP;

    function measure() {
      width = list.clientWidth;
      if (!width) return;
      columns = Math.max(1, Math.floor((width + GAP) / (size().width + GAP)));
      list.style.height = `${Math.max(0, Math.ceil(shown.length / columns) * row_height() - GAP)}px`;
      list.dataset.layout = layout;
      list.style.setProperty("--columns", columns);
      draw();
    }

    function draw() {
      if (!width) return;
      const top = list.getBoundingClientRect().top;
      const first = Math.max(0, Math.floor((-top - MARGIN) / row_height())) * columns;
      const last = Math.min(shown.length, Math.ceil((window.innerHeight - top + MARGIN) / row_height()) * columns);
      const wanted = new Map();
      for (let index = first; index < last; index += 1) wanted.set(shown[index].name, index);
      const focused = focused_name();
      if (focused && place.has(focused)) wanted.set(focused, place.get(focused)); // taking it out would lose the keyboard's place
      for (const [name, card] of cards) {
        if (wanted.has(name)) continue;
        card.leave();
        cards.delete(name);
      }
      const fresh = document.createDocumentFragment();
      for (const [name, index] of wanted) {
        let card = cards.get(name);
        if (!card) {
          card = studio.make_card(name, hooks);
          cards.set(name, card);
          fresh.append(card.node);
        }
        card.move(index, shown.length, ((index % columns) * (width + GAP)) / columns, Math.floor(index / columns) * row_height());
        card.show(studio.row(name));
      }
      list.append(fresh);
      want_pictures();
    }

    let drawing = false;
    function draw_soon() {
      if (drawing) return;
      drawing = true;
      window.requestAnimationFrame(() => {
        drawing = false;
        draw();
      });
    }

    let rest = 0;
    let waiting_since = 0;
    /** A fast scroll through thousands asks for no picture that is gone before it could come. */
    function want_pictures() {
      const now = performance.now();
      waiting_since ||= now;
      window.clearTimeout(rest);
      const wait = Math.max(0, Math.min(REST_MS, waiting_since + MAX_WAIT_MS - now));
      rest = window.setTimeout(() => {
        waiting_since = 0;
        for (const card of cards.values()) card.load();
      }, wait);
    }

    function box_key(event, name) {
      if (event.defaultPrevented) return; // the list of suggestions took it
      const step = event.key === "Enter" && !event.shiftKey ? 1 : (event.ctrlKey || event.metaKey) && { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (event.key === "Escape") {
        event.preventDefault();
        event.stopPropagation();
        focus_card(name);
      } else if (step) {
        event.preventDefault();
        const next = shown[place.get(name) + step];
        if (next) edit(next.name);
        else focus_card(name);
      }
    }

    function edit(name) {
      reveal(name);
      const box = cards.get(name)?.box;
      if (!box) return;
      box.focus({ preventScroll: true });
      box.setSelectionRange(box.value.length, box.value.length);
    }

    // ---- moving and selecting ------------------------------------------------------------------------------------------

    const focused_name = () => (list.contains(document.activeElement) ? document.activeElement.dataset.name : "");

    function set_current(name) {
      if (name === current) return;
      const old = cards.get(current);
      current = name;
      if (old) old.open.tabIndex = -1;
      const card = cards.get(name);
      if (card) card.open.tabIndex = 0;
    }

    /** Scrolls so far that the picture is in sight, below the bar that stays at the top. */
    function reveal(name) {
      const index = place.get(name);
      if (index === undefined) return;
      const top = list.getBoundingClientRect().top + Math.floor(index / columns) * row_height();
      const least = Math.max(0, bar.getBoundingClientRect().bottom) + GAP;
      if (top < least) window.scrollBy(0, top - least);
      else if (top + row_height() > window.innerHeight) window.scrollBy(0, top + row_height() - window.innerHeight + GAP);
      draw();
    }

    function focus_card(name) {
      reveal(name);
      set_current(name);
      cards.get(name)?.open.focus({ preventScroll: true });
    }

    function refresh() {
      for (const [name, card] of cards) card.show(studio.row(name));
      tell();
    }

    function toggle(name) {
      const next = new Set(studio.selection);
      if (!next.delete(name)) next.add(name);
      anchor = name;
      studio.set_selection(next);
    }

    function select_range(name) {
      const from = place.get(anchor) ?? place.get(current) ?? 0;
      const to = place.get(name);
      const range = shown.slice(Math.min(from, to), Math.max(from, to) + 1).map((row) => row.name);
      studio.set_selection([...studio.selection, ...range]);
    }

    function extend(from, to) {
      if (!studio.selection.has(from)) anchor = from;
      select_range(to);
    }

    async function remove_selected() {
      const names = studio.rows.map((row) => row.name).filter((name) => studio.selection.has(name));
      if (studio.builtin || !names.length) return;
      const what = names.length === 1 ? names[0] : studio.pictures(names.length);
      if (await confirm_dialog(`Remove ${what} from ${studio.name}? Undo brings ${names.length === 1 ? "it" : "them"} back.`, "Remove")) await studio.remove(names);
    }

    studio.remove = (names) => studio.act(null, "remove_pictures", { names });

    function grid_key(event) {
      if (current_tab() !== "dataset" || keys_off() || document.querySelector("dialog[open]") || event.altKey) return;
      if (event.target.closest?.("input:not([type=checkbox]), textarea, select, [contenteditable=true], .sl-panel, [popover]")) return;
      const inside = list.contains(event.target);
      const control = event.ctrlKey || event.metaKey;
      if (control && event.key.toLowerCase() === "a" && shown.length) {
        event.preventDefault();
        return studio.set_selection(shown.map((row) => row.name));
      }
      if (control || !shown.length) return;
      const index = place.get(current) ?? 0;
      const page = Math.max(1, Math.floor((window.innerHeight - bar.offsetHeight) / row_height())) * columns;
      const moves = { ArrowRight: index + 1, ArrowLeft: index - 1, ArrowDown: index + columns, ArrowUp: index - columns };
      if (inside) Object.assign(moves, { Home: 0, End: shown.length - 1, PageDown: index + page, PageUp: index - page });
      if (event.key in moves && (inside || document.activeElement === document.body)) {
        event.preventDefault();
        const to = shown[Math.max(0, Math.min(shown.length - 1, moves[event.key]))].name;
        if (event.shiftKey) extend(current, to);
        return focus_card(to);
      }
      const keys = { e: () => edit(current), x: () => (event.shiftKey ? select_range(current) : toggle(current)), j: next_untagged, Delete: () => remove_one_or_more() };
      if (event.key === "Escape" && studio.selection.size) return studio.set_selection([]);
      const work = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
      if (work) {
        event.preventDefault();
        work();
      }
    }

    function remove_one_or_more() {
      if (!studio.selection.size && current) studio.set_selection([current]);
      remove_selected();
    }

    function next_untagged() {
      const start = place.get(current) ?? -1;
      const order = [...shown.slice(start + 1), ...shown.slice(0, start + 1)];
      const next = order.find((row) => !row.caption);
      if (next) edit(next.name);
      else notify("Every picture that is shown has a caption.");
    }

    // ---- sizes that the server has not read yet -------------------------------------------------------------------------

    let reading = 0;
    async function read_facts() {
      const number = (reading += 1);
      const name = studio.name;
      for (;;) {
        const names = studio.rows.filter((row) => row.pending).slice(0, FACTS_AT_ONCE).map((row) => row.name);
        if (!names.length || number !== reading || name !== studio.name) break;
        let answer;
        try {
          answer = await studio.call("picture_facts", { dataset: name, names });
        } catch {
          return;
        }
        if (number !== reading) return;
        for (const one of names) {
          const row = studio.row(one);
          if (row) Object.assign(row, answer.facts[one] || {}, { stamp: (row.stamp || 0) + 1 });
        }
        if (!Object.keys(answer.facts).length) break;
        draw_soon();
      }
      if (number === reading) read_crops(number);
    }

    /** What training makes of each size, by the trainer's own code. */
    async function read_crops(number) {
      try {
        const { crops } = await studio.call("picture_crops", { training: studio.training });
        if (number !== reading) return;
        for (const row of studio.rows) {
          const [width, height, enlarged] = crops[row.name] || [0, 0, 0];
          if (row.enlarged !== enlarged || row.bucket?.[0] !== width) Object.assign(row, { bucket: width ? [width, height] : null, enlarged, stamp: (row.stamp || 0) + 1 });
        }
        if (sort.value === "problems" || /is:|width|height/.test(find.value)) arrange();
        else draw_soon();
        studio.emit("crops");
      } catch {
        // the sizes are shown all the same
      }
    }

    // ---- wiring ---------------------------------------------------------------------------------------------------------

    let typing = 0;
    find.addEventListener("input", () => {
      window.clearTimeout(typing);
      typing = window.setTimeout(arrange, studio.rows.length > 500 ? 120 : 0);
    });
    find.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== "ArrowDown") return;
      event.preventDefault();
      arrange();
      if (shown.length) focus_card(shown[0].name);
    });
    sort.addEventListener("change", () => {
      window.localStorage.setItem("safelight-studio-sort", sort.value);
      arrange();
    });
    looks.addEventListener("change", () => {
      layout = looks.value;
      window.localStorage.setItem("safelight-studio-layout", layout);
      measure();
    });
    all.addEventListener("click", () => studio.set_selection(shown.map((row) => row.name)));
    none.addEventListener("click", () => studio.set_selection([]));
    remove.addEventListener("click", remove_selected);
    document.addEventListener("keydown", grid_key);
    window.addEventListener("scroll", draw_soon, { passive: true });
    window.addEventListener("resize", draw_soon, { passive: true });
    new ResizeObserver(measure).observe(list);
    const strip = document.getElementById("view-strip");
    // the strip stays at the top without its heading; this bar stays right below it, however high it is just now
    new ResizeObserver(() => (bar.style.top = `${Math.max(0, strip.offsetHeight + parseFloat(window.getComputedStyle(strip).top) - 1)}px`)).observe(strip);

    studio.find = (text) => {
      find.value = text;
      arrange();
      bar.scrollIntoView({ block: "start" });
    };
    studio.step_from = (name, step) => shown[(place.get(name) ?? 0) + step]?.name || "";
    studio.position_of = (name) => [(place.get(name) ?? -1) + 1, shown.length];
    studio.focus_card = focus_card;
    studio.toggle = toggle;
    studio.on("dataset", () => {
      for (const card of cards.values()) card.leave();
      cards = new Map();
      find.value = "";
      current = anchor = "";
    });
    studio.on("rows", () => {
      arrange();
      read_facts();
    });
    studio.on("problems", arrange);
    studio.on("training", () => {
      if (studio.rows.length) read_facts();
    });
    studio.on("selection", refresh);
    studio.on("caption", ({ name, words, tone }) => cards.get(name)?.tell(words, tone));
    studio.on("row", () => {
      refresh();
      tell();
    });
    arrange();
  });
})();
