// The panel "Prepare a version" of the Dataset tab: what is done to every picture, and the name of the new dataset.
(() => {
  "use strict";
  const { h, redraw, call, notify, studio } = window.safelight;

  window.safelight.define("studio_prepare", ({ element, server }) => {
    const panel = studio.panel(element, { id: "prepare", title: "Prepare a version" });
    const name = h("input", { type: "text", id: "studio-prepare-name", class: "sl-field", maxlength: "100", autocomplete: "off", spellcheck: "false" });
    const fields = h("div", { class: "sl-prepare" });
    const scope = h("p", { role: "status", id: "studio-prepare-scope" });
    const note = h("p", { class: "sl-muted" });
    const start = h("button", { type: "button", class: "sl-button sl-primary", id: "studio-prepare-start" }, "Make the new dataset");
    panel.body.append(
      h("p", { class: "sl-muted" }, "Makes a new dataset with captions, masks and settings. The open one stays as it is."),
      fields,
      note,
      h("div", { class: "sl-bar" }, h("label", { for: "studio-prepare-name" }, "Name of the new dataset", name), start),
      scope,
    );
    const inputs = new Map();
    let suggested = "";
    let working = false;

    function field(option) {
      const id = `studio-prepare-${option.name.replaceAll("_", "-")}`;
      const shared = { id, "aria-describedby": `${id}-help`, "data-key": id };
      let input;
      let box;
      if (option.kind === "choice") {
        input = h("select", { ...shared, class: "sl-select" }, option.choices.map(([value, label]) => h("option", { value }, label)));
        input.value = option.default;
        box = input;
      } else if (option.name === "background") {
        // a colour field always holds a colour, so a tick says whether it counts
        const tick = h("input", { type: "checkbox", id: `${id}-on`, "aria-label": "Put transparent pictures on a colour" });
        const colour = h("input", { type: "color", ...shared, value: "#ffffff" });
        colour.addEventListener("input", () => (tick.checked = true));
        input = { get value() { return tick.checked ? colour.value : ""; } };
        box = h("span", { class: "sl-actions" }, tick, colour);
      } else {
        input = h("input", { ...shared, type: option.kind === "integer" ? "number" : "text", class: "sl-field sl-short", min: "0", max: String(option.maximum), step: "1" });
        input.value = String(option.default);
        box = input;
      }
      inputs.set(option.name, { input, option });
      return h("div", { class: "sl-prepare-field" }, h("label", { for: id }, option.title), box, h("p", { id: `${id}-help`, class: "sl-muted" }, option.help));
    }

    function values() {
      const chosen = {};
      for (const [key, { input, option }] of inputs) {
        if (option.kind === "integer") {
          if (!Number.isInteger(input.valueAsNumber)) throw new Error(`${option.title}: give a whole number, or 0.`);
          chosen[key] = input.valueAsNumber;
        } else chosen[key] = input.value;
      }
      return chosen;
    }

    function draw_scope() {
      if (!panel.is_open()) return;
      scope.textContent = studio.rows.length ? `Made of ${studio.scope_text()}.` : "There are no pictures yet.";
      start.disabled = working || !studio.scope().length;
    }

    async function load() {
      if (!panel.is_open() || !studio.name) return;
      let state;
      try {
        state = await call(server, "prepare_state", { dataset: studio.name }, 60);
      } catch (error) {
        notify(error.told ? error.message : "Safelight does not answer. Is it still running?", "bad");
        return;
      }
      redraw(fields, state.options, () => state.options.map(field));
      note.textContent = state.note;
      if (!name.value || name.value === suggested) name.value = state.name;
      suggested = state.name;
      draw_scope();
    }

    async function make() {
      let options;
      try {
        options = values();
      } catch (error) {
        notify(error.message, "bad");
        return;
      }
      working = true;
      draw_scope();
      const from = studio.name;
      const answer = await studio.act(server, "prepare_version", { names: studio.scope(), name: name.value, options, training: studio.training }, { reload: false });
      if (answer && answer.task) {
        const task = await studio.task(answer);
        notify(task.message, task.state === "failed" ? "bad" : undefined);
        if (task.state === "done" && studio.name === from) {
          name.value = "";
          await studio.choose(answer.name);
        }
      }
      working = false;
      draw_scope();
    }

    start.addEventListener("click", make);
    panel.on_open(load);
    studio.on("dataset", () => {
      name.value = "";
      load();
    });
    for (const event of ["rows", "selection", "shown"]) studio.on(event, draw_scope);
  });
})();
