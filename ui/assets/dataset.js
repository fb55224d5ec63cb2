// The Dataset tab: pictures with their captions. A caption is saved when its box is left.
(() => {
  "use strict";
  const { h, setText, redraw, call, notify, open_dialog } = window.safelight;
  const PAGE = 60;

  window.safelight.define("dataset", ({ element, server, trigger, watch, props }) => {
    let state = { datasets: [], name: "", pictures: [] };
    let shown = PAGE;
    const chooser = h("select", { id: "dataset-choice", class: "sl-select" });
    const find = h("input", { type: "search", id: "dataset-find", class: "sl-field", placeholder: "tag or file name ( / )" });
    const use = h("button", { type: "button", class: "sl-button" }, "Train with this dataset");
    const count = h("p", { class: "sl-muted", role: "status" });
    const told = h("div", { role: "status" });
    const grid = h("ul", { class: "sl-grid" });
    const more = h("button", { type: "button", class: "sl-button", hidden: true }, "Show more");
    element.replaceChildren(
      told,
      h(
        "div",
        { class: "sl-bar" },
        h("label", { for: "dataset-choice" }, "Dataset", chooser),
        h("label", { for: "dataset-find" }, "Find", find),
        use,
      ),
      count,
      grid,
      more,
    );

    async function save(picture, box, note) {
      const text = box.value;
      if (text === picture.caption) return;
      setText(note, "Saving…");
      try {
        await call(server, "write_caption", { dataset: state.name, picture: picture.name, text });
        picture.caption = text;
        setText(note, "Saved");
      } catch (error) {
        setText(note, "Not saved");
        notify(error.message, "bad");
      }
    }

    function enlarge(picture) {
      open_dialog(picture.name, h("div", { class: "sl-viewer" }, h("img", { class: "sl-large", src: picture.url, alt: picture.caption || picture.name })));
    }

    function card(picture) {
      const note = h("span", { class: "sl-muted", role: "status" });
      const box = h("textarea", { class: "sl-field", rows: "3", "aria-label": `Caption of ${picture.name}`, readonly: state.builtin || null });
      box.value = picture.caption;
      box.addEventListener("blur", () => save(picture, box, note));
      const problem = picture.fault || picture.caption_fault;
      const facts = [picture.name, picture.size, picture.caption ? null : "no caption"].filter(Boolean).join(" · ");
      return h(
        "li",
        { class: "sl-card sl-picture" },
        picture.fault
          ? h("span", { class: "sl-nothing" }, "no picture")
          : h(
              "button",
              { type: "button", class: "sl-sample", "aria-label": `Enlarge ${picture.name}`, onclick: () => enlarge(picture) },
              h("img", { src: picture.thumb, alt: "", loading: "lazy" }),
            ),
        h("div", {}, box, h("p", { class: "sl-muted" }, facts, " ", note), problem ? h("p", { class: "sl-bad" }, problem) : null),
      );
    }

    function draw() {
      const words = find.value.trim().toLowerCase();
      const found = state.pictures.filter((picture) => `${picture.name} ${picture.caption}`.toLowerCase().includes(words));
      const captions = state.pictures.filter((picture) => picture.caption).length;
      setText(count, `${found.length} of ${state.pictures.length} pictures · ${captions} with a caption${state.builtin ? " · built in, can't be changed" : ""}`);
      redraw(grid, [state.name, state.builtin, found.slice(0, shown)], () => found.slice(0, shown).map(card));
      more.hidden = found.length <= shown;
    }

    async function load(name) {
      try {
        state = await call(server, "dataset_state", { dataset: name });
      } catch (error) {
        return notify(error.message, "bad");
      }
      redraw(chooser, state.datasets, () =>
        state.datasets.map((set) => h("option", { value: set.name }, `${set.name} (${set.pictures} pictures)`)),
      );
      chooser.value = state.name;
      use.disabled = !state.pictures.length;
      draw();
    }

    chooser.addEventListener("change", () => {
      shown = PAGE;
      load(chooser.value);
    });
    find.addEventListener("input", draw);
    use.addEventListener("click", () => trigger("use", { name: state.name }));
    more.addEventListener("click", () => {
      shown += PAGE;
      draw();
    });
    watch("value", () => {
      const { text, tone, skipped, select } = props.value || {};
      if (!text) return;
      told.replaceChildren(
        h("p", { class: `sl-message sl-${tone}` }, text),
        skipped.length ? h("ul", { class: "sl-skipped" }, skipped.map(([name, why]) => h("li", {}, h("strong", {}, name), ": ", why))) : "",
      );
      told.scrollIntoView({ block: "nearest" });
      load(select || state.name);
    });
    load("");
  });
})();
