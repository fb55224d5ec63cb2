// Presets of one's own on the Train tab, what became of imported settings, and files to take away.
(() => {
  "use strict";
  const { h, open_dialog, confirm_dialog, copy, save_as, call, act, notify } = window.safelight;
  const button = (label, work, kind = "") => h("button", { type: "button", class: `sl-button ${kind}`, onclick: work }, label);

  const words_of = (error) => (error.told ? error.message : "Safelight does not answer. Is it still running?");

  /** What became of every setting of another program's file. */
  window.safelight.show_import_report = ({ summary, notes, groups }) => {
    const line = ({ theirs, ours, reason }) =>
      h("li", {}, ours ? [h("strong", {}, ours), ` ← ${theirs}`] : h("strong", {}, theirs), reason ? h("span", { class: "sl-muted" }, `: ${reason}`) : null);
    const group = ({ title, open, entries }) =>
      h("details", { open, class: "sl-import-group" }, h("summary", {}, title), h("ul", { class: "sl-notes" }, entries.map(line)));
    open_dialog(
      "Imported settings",
      h("div", { id: "import-report" }, h("p", { role: "status" }, summary), notes.map((note) => h("p", {}, note)), groups.map(group)),
    );
  };

  /** Files as text, to copy or download, with what they cannot say. */
  window.safelight.show_files = ({ title, files, command, notes, lost }) => {
    const file = ({ name, text }) =>
      h(
        "details",
        { open: files.length === 1 },
        h("summary", {}, name),
        h("div", { class: "sl-actions" }, button(`Copy ${name}`, () => copy(text)), button(`Download ${name}`, () => save_as(name, text), "sl-primary")),
        h("pre", { class: "sl-code", tabindex: "0", "aria-label": name }, text),
      );
    open_dialog(
      title,
      h(
        "div",
        { id: "exported-files" },
        h("p", {}, "To train with them:"),
        h("pre", { class: "sl-code", tabindex: "0", "aria-label": "Command" }, command),
        notes.map((note) => h("p", {}, note)),
        lost.length ? h("details", { open: true }, h("summary", {}, `What they cannot say (${lost.length})`), h("ul", { class: "sl-notes" }, lost.map((entry) => h("li", {}, entry)))) : null,
        files.map(file),
      ),
    );
  };

  window.safelight.define("presets", ({ element, trigger, server, watch, props }) => {
    element.replaceChildren(h("div", { class: "sl-actions", id: "preset-buttons" }, button("Save as preset", ask), button("Your presets", manage)));
    let asked = { name: "", reason: "" }; // until it is kept: a refusal loses nothing that was typed

    /** A place for what is wrong with a field, shown beside it. */
    function fault_of(field, id) {
      const fault = h("p", { id, class: "sl-message sl-bad", role: "alert", hidden: true });
      const tell = (text) => {
        fault.hidden = !text;
        fault.textContent = text;
        field.setAttribute("aria-invalid", String(Boolean(text)));
        field.setAttribute("aria-describedby", id);
        if (text) field.focus();
      };
      return { fault, tell };
    }

    function ask() {
      const name = h("input", { type: "text", id: "preset-name", class: "sl-field", value: asked.name, required: true });
      const reason = h("input", { type: "text", id: "preset-reason", class: "sl-field", value: asked.reason });
      const { fault, tell } = fault_of(name, "preset-name-fault");
      const form = h(
        "form",
        { class: "sl-preset-form" },
        h("p", {}, "Keeps every setting that differs from those of the model alone; name, model, dataset and trigger word are left out."),
        h("label", { for: "preset-name" }, "Name", name),
        fault,
        h("label", { for: "preset-reason" }, "What it is good for (may be empty)", reason),
        h("div", { class: "sl-actions" }, h("button", { type: "submit", class: "sl-button sl-primary" }, "Save")),
      );
      form.addEventListener("submit", async (event) => {
        event.preventDefault();
        asked = { name: name.value, reason: reason.value };
        try {
          await call(server, "may_save_own", asked);
        } catch (error) {
          tell(words_of(error));
          return;
        }
        dialog.close(); // what may still be wrong stands in the form below it
        trigger("save", asked);
      });
      const dialog = open_dialog("Save as preset", form);
      name.focus();
    }

    async function manage() {
      const list = h("div", { id: "own-presets" });
      const shown = open_dialog("Your presets", list);
      async function draw() {
        const { presets, faults } = await call(server, "list_own");
        list.replaceChildren(
          ...(presets.length || faults.length ? [] : [h("p", {}, "None yet. “Save as preset” keeps the settings of the form.")]),
          ...faults.map((fault) => h("p", { class: "sl-message sl-bad" }, fault)),
          ...presets.map(row),
        );
      }
      function row({ name, about }, position) {
        const renamed = h("input", { type: "text", class: "sl-field", value: name, "aria-label": `New name of ${name}` });
        const { fault, tell } = fault_of(renamed, `preset-fault-${position}`);
        const changed = async () => {
          trigger("changed", {});
          await draw();
        };
        const rename = async (event) => {
          event.preventDefault();
          try {
            notify((await call(server, "rename_own", { name, new: renamed.value })).text);
          } catch (error) {
            tell(words_of(error));
            return;
          }
          await changed();
        };
        const remove = async () => {
          if ((await confirm_dialog(`Delete the preset ${name}?`, "Delete")) && (await act(server, "delete_own", name))) await changed();
        };
        return h(
          "form",
          { class: "sl-preset", onsubmit: rename },
          h("p", {}, h("strong", {}, name), h("span", { class: "sl-muted" }, ` ${about}`)),
          h(
            "div",
            { class: "sl-actions" },
            renamed,
            h("button", { type: "submit", class: "sl-button", "aria-label": `Rename ${name}` }, "Rename"),
            h("button", { type: "button", class: "sl-button", "aria-label": `Delete ${name}`, onclick: remove }, "Delete"),
          ),
          fault,
        );
      }
      try {
        await draw();
      } catch (error) {
        shown.close();
        notify(error.message, "bad");
      }
    }

    watch("value", () => {
      const value = props.value || {};
      if (!value.saved) return;
      asked = { name: "", reason: "" };
      notify(`Kept as the preset ${value.saved}.`);
    });
  });
})();
