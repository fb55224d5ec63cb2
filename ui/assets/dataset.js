// The head of the Dataset tab: which dataset is open, undo and redo, the panels' buttons and what is going on.
(() => {
  "use strict";
  const { h, setText, redraw, notify, open_dialog, confirm_dialog, current_tab, studio } = window.safelight;

  const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
  const clock = (seconds) => new Date(seconds * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });

  /** Asks for a name and works with it until it is taken; a refusal stays in the dialog, so that nothing typed is lost. */
  function ask_name({ title, text, value = "", yes, work }) {
    const field = h("input", { type: "text", class: "sl-field", id: "dataset-new-name", maxlength: "100", autocomplete: "off", spellcheck: "false" });
    const fault = h("p", { class: "sl-message sl-bad", role: "alert", hidden: true });
    field.value = value;
    const form = h(
      "form",
      { class: "sl-form" },
      text ? h("p", {}, text) : null,
      h("label", { for: field.id }, "Name", field),
      fault,
      h("div", { class: "sl-actions" }, h("button", { class: "sl-button sl-primary" }, yes)),
    );
    const dialog = open_dialog(title, form, { class: "sl-dialog sl-small" });
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      try {
        const answer = await work(field.value.trim());
        dialog.close();
        if (answer.text) notify(answer.text);
        if (answer.task) studio.task(answer);
        await studio.load(answer.select || studio.name);
      } catch (error) {
        fault.hidden = false;
        setText(fault, error.told ? error.message : "Safelight does not answer. Is it still running?");
        field.focus();
      }
    });
    field.focus();
    field.select();
  }

  const free_name = (start) => {
    const taken = new Set(studio.state.datasets.map((set) => set.name));
    let number = 2;
    while (taken.has(`${start}-${number}`)) number += 1;
    return `${start}-${number}`;
  };

  const make_new = () =>
    ask_name({
      title: "New dataset",
      yes: "Make it",
      work: async (name) => {
        const answer = await studio.call("create_dataset", { name });
        window.setTimeout(() => studio.open_panel("import"), 300);
        return answer;
      },
    });

  const copy_it = () =>
    ask_name({
      title: `Copy ${studio.name}`,
      text: "Pictures, captions, crops and masks go along; the history of changes stays with the original.",
      value: free_name(studio.name),
      yes: "Copy",
      work: (name) => studio.call("copy_dataset", { name }),
    });

  const rename_it = () =>
    ask_name({ title: `Rename ${studio.name}`, value: studio.name, yes: "Rename", work: (name) => studio.call("rename_dataset", { name }) });

  async function delete_it() {
    const question = `Delete ${studio.name} with its ${plural(studio.rows.length, "picture")}, captions and history? This can't be undone.`;
    if (await confirm_dialog(question, "Delete")) await studio.act(null, "delete_dataset");
  }

  async function show_history() {
    const { edits } = await studio.call("dataset_edits");
    const done = edits.filter((edit) => !edit.undone).length;
    const back_to = (steps) => async () => {
      dialog.close();
      await studio.act(null, "undo_edits", { steps });
    };
    const row = (edit, index) =>
      h(
        "tr",
        { class: edit.undone ? "sl-undone" : "" },
        h("th", { scope: "row" }, edit.label),
        h("td", { "data-label": "When" }, clock(edit.time)),
        h("td", { "data-label": "Files" }, String(edit.files), edit.left ? h("span", { class: "sl-bad" }, ` (${edit.left} left alone: changed outside since)`) : null),
        h(
          "td",
          {},
          edit.undone
            ? h("span", { class: "sl-muted" }, "undone")
            : h("button", { type: "button", class: "sl-button", "aria-label": `Undo ${edit.label} and everything after it`, onclick: back_to(index + 1) }, "Undo to before this"),
        ),
      );
    const standing = edits.filter((edit) => !edit.undone);
    const table = h(
      "table",
      { class: "sl-table sl-stack" },
      h("thead", {}, h("tr", {}, ["Change", "When", "Files", ""].map((name) => (name ? h("th", { scope: "col" }, name) : h("td", {}))))),
      h("tbody", {}, edits.map((edit) => row(edit, standing.indexOf(edit)))),
    );
    const dialog = open_dialog(`Changes of ${studio.name}`, edits.length ? h("div", { class: "sl-scroll" }, table) : h("p", {}, "Nothing was changed yet."));
    if (done === 0 && edits.length) table.before(h("p", { class: "sl-muted" }, "Everything is undone. Redo brings it back."));
  }

  // ---- the menu of what is needed less often ----------------------------------------------------------------------

  function menu(entries) {
    const list = h("div", { class: "sl-menu", popover: "auto", id: "dataset-menu" });
    const button = h("button", { type: "button", class: "sl-button", popovertarget: list.id, "aria-haspopup": "true", id: "dataset-more" }, "More");
    const items = entries.map(([label, work, kind = ""]) =>
      h(
        "button",
        {
          type: "button",
          class: `sl-menu-item ${kind}`,
          onclick: () => {
            list.hidePopover();
            work();
          },
        },
        label,
      ),
    );
    list.append(...items);
    list.addEventListener("toggle", (event) => {
      if (event.newState !== "open") return;
      const place = button.getBoundingClientRect();
      list.style.top = `${place.bottom + 4}px`;
      list.style.left = `${Math.max(8, Math.min(place.left, window.innerWidth - list.offsetWidth - 8))}px`;
      items.find((item) => !item.disabled)?.focus();
    });
    list.addEventListener("keydown", (event) => {
      const usable = items.filter((item) => !item.disabled);
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      usable[(usable.indexOf(document.activeElement) + step + usable.length) % usable.length].focus();
    });
    return { button, list, items };
  }

  // ---- the view -------------------------------------------------------------------------------------------------

  window.safelight.define("dataset", ({ element, server, trigger, watch, props }) => {
    const chooser = h("select", { id: "dataset-choice", class: "sl-select" });
    const word = h("input", { type: "text", id: "dataset-trigger", class: "sl-field", maxlength: "200", autocomplete: "off", spellcheck: "false", placeholder: "none" });
    const fresh = h("button", { type: "button", class: "sl-button", id: "dataset-new", onclick: make_new }, "New");
    const { button: more, list, items } = menu([
      ["Copy …", copy_it],
      ["Rename …", rename_it],
      ["All changes …", show_history],
      ["Delete …", delete_it, "sl-bad"],
    ]);
    const undo = h("button", { type: "button", class: "sl-button sl-undo", id: "dataset-undo", onclick: () => step("undo_edits") }, "Undo");
    const redo = h("button", { type: "button", class: "sl-button sl-undo", id: "dataset-redo", onclick: () => step("redo_edit") }, "Redo");
    const use = h("button", { type: "button", class: "sl-button sl-primary", id: "dataset-use" }, "Train with this dataset");
    const copy_first = h("button", { type: "button", class: "sl-button", onclick: copy_it }, "Copy it");
    const locked = h("p", { class: "sl-message sl-locked", hidden: true }, h("span", {}, ""), copy_first);
    const fault = h("p", { class: "sl-message sl-bad", role: "alert", hidden: true });
    const bar = h("div", { class: "sl-panel-bar", role: "group", "aria-label": "Tools of the dataset" });
    const tasks = h("ul", { class: "sl-tasks", id: "studio-tasks", "aria-label": "What is going on with the pictures" });
    element.replaceChildren(
      h(
        "div",
        { class: "sl-studio-head" },
        h("label", { class: "sl-studio-name", for: chooser.id }, "Dataset", chooser),
        h("div", { class: "sl-actions" }, fresh, more, list),
        h("label", { class: "sl-studio-word", for: word.id }, "Trigger word", word),
        h("div", { class: "sl-actions sl-studio-undo" }, undo, redo),
        use,
      ),
      locked,
      fault,
      bar,
      tasks,
    );

    async function step(name) {
      if (undo.dataset.busy) return; // a held key would undo more than anybody reads
      undo.dataset.busy = "1";
      await studio.act(null, name);
      delete undo.dataset.busy;
    }

    function draw_state() {
      const state = studio.state;
      redraw(chooser, state.datasets, () => state.datasets.map((set) => h("option", { value: set.name }, `${set.name} (${plural(set.pictures, "picture")}${set.builtin ? ", built in" : ""})`)));
      chooser.value = studio.name;
      for (const [button, name, label] of [[undo, "Undo", state.undo], [redo, "Redo", state.redo]]) {
        button.disabled = !label;
        setText(button, label ? `${name}: ${label}` : name);
        button.title = label ? `${name}: ${label}` : "";
      }
      if (document.activeElement !== word && state.name === studio.name) word.value = state.trigger || "";
      fault.hidden = !state.fault;
      setText(fault, state.fault || "");
      studio.draw_tasks(tasks);
    }

    function draw_dataset() {
      const { builtin, name, rows } = studio;
      chooser.value = name;
      locked.hidden = !builtin;
      setText(locked.firstChild, `${name} is built in and can't be changed. Copy it to work on your own.`);
      word.disabled = builtin;
      use.disabled = !rows.length;
      for (const [index, off] of [[1, builtin], [3, builtin]]) items[index].disabled = off;
      for (const panel of studio.panels) {
        panel.button.disabled = builtin && panel.writes;
        if (panel.button.disabled) panel.show(false);
      }
    }

    function draw_panels() {
      bar.replaceChildren(...studio.panels.map((panel) => panel.button));
      draw_dataset();
    }

    async function save_word() {
      if (word.value.trim() !== (studio.state.trigger || "")) await studio.act(null, "set_trigger", { word: word.value.trim() }, { reload: false });
    }

    chooser.addEventListener("change", () => studio.choose(chooser.value));
    word.addEventListener("change", save_word);
    word.addEventListener("keydown", (event) => {
      if (event.key === "Enter") save_word();
    });
    use.addEventListener("click", async () => {
      await studio.flush();
      trigger("use", { name: studio.name });
    });
    document.addEventListener("keydown", (event) => {
      if (current_tab() !== "dataset" || !(event.ctrlKey || event.metaKey) || event.altKey || document.querySelector("dialog[open]:not(.sl-look)")) return;
      const key = event.key.toLowerCase();
      const typing = event.target.closest?.("input:not([type=checkbox]):not([type=range]), textarea, [contenteditable=true]");
      if (typing && typing.value !== typing.dataset.saved) return; // the browser's own undo of what is being typed
      const name = key === "z" && !event.shiftKey ? "undo_edits" : key === "y" || (key === "z" && event.shiftKey) ? "redo_edit" : null;
      if (!name) return;
      event.preventDefault();
      step(name);
    });

    studio.on("state", draw_state);
    studio.on("dataset", draw_dataset);
    studio.on("rows", draw_dataset);
    studio.on("panels", draw_panels);
    const follow_form = () => props.value?.training && studio.set_training(props.value.training);
    watch("value", follow_form);
    follow_form();
    draw_panels();
    studio.attach(element, server);
    studio.load(new URL(window.location.href).searchParams.get("dataset") || "");
  });
})();
