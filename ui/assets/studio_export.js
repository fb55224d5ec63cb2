// The panel "Export" of the Dataset tab: the dataset, or the pictures that are chosen, as a zip file or a folder.
(() => {
  "use strict";
  const { h, setText, redraw, call, studio } = window.safelight;

  window.safelight.define("studio_export", ({ element, server }) => {
    const panel = studio.panel(element, { id: "export", title: "Export" });
    const layout = h("select", { id: "export-layout", class: "sl-select" });
    const only = h("input", { type: "checkbox", id: "export-scope" });
    const only_text = h("span", {});
    const place = h("input", { id: "export-place", class: "sl-field", autocomplete: "off", spellcheck: "false", placeholder: "empty: a zip file to download", "aria-describedby": "export-place-help" });
    const local = h(
      "div",
      { class: "sl-option" },
      h("label", { for: place.id }, "New folder or .zip on this machine"),
      place,
      h("p", { class: "sl-muted", id: "export-place-help" }, "Its whole path. Nothing that is there is overwritten."),
    );
    const go = h("button", { class: "sl-button sl-primary", id: "export-go" }, "Export");
    const files = h("ul", { class: "sl-tasks", "aria-label": "Files that are ready" });
    const form = h(
      "form",
      { class: "sl-edit" },
      h("p", {}, "Takes copies of the pictures, without place, camera or other metadata, with captions, masks and a manifest.json of their hashes, crops and repeats."),
      h("div", { class: "sl-options" }, h("div", { class: "sl-option" }, h("label", { for: layout.id }, "Layout"), layout), local),
      h("label", { class: "sl-choice", for: only.id }, only, only_text),
      h("div", { class: "sl-actions" }, go),
    );

    const is_part = () => studio.scope().length < studio.rows.length;

    function draw() {
      const part = is_part();
      only.disabled = !part;
      if (!part) only.checked = false;
      setText(only_text, part ? `Only ${studio.scope_text()}` : "Only some pictures: select them, or filter, first");
      go.disabled = !studio.rows.length;
      setText(go, `Export ${studio.pictures(only.checked ? studio.scope().length : studio.rows.length)}`);
    }

    function draw_files(found) {
      redraw(files, found, () =>
        found.map((file) =>
          h(
            "li",
            { class: "sl-task" },
            h("a", { href: file.url, download: file.name, class: "sl-button" }, `Download ${file.name}`),
            h("span", { class: "sl-task-middle" }, `${file.size}, made ${new Date(file.time * 1000).toLocaleString()}`),
            h("button", { type: "button", class: "sl-button sl-plain", "data-key": file.key, "aria-label": `Delete ${file.name}`, onclick: () => remove(file.key) }, "Delete"),
          ),
        ),
      );
      panel.note(found.length ? `${found.length} ready` : "");
    }

    async function renew() {
      let answer;
      const asked = studio.name;
      try {
        answer = await call(server, "export_form", { dataset: asked });
      } catch {
        return; // the strip says so when the server is away
      }
      if (asked !== studio.name) return;
      if (!layout.options.length) layout.append(...answer.layouts.map(([value, words]) => h("option", { value }, words)));
      local.hidden = !answer.local;
      draw_files(answer.files);
    }

    async function remove(key) {
      await studio.act(server, "export_remove", { key }, { reload: false });
      await renew();
    }

    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (go.disabled) return;
      go.disabled = true;
      const names = only.checked && is_part() ? studio.scope() : null;
      const answer = await studio.act(server, "export_start", { layout: layout.value, names, place: local.hidden ? "" : place.value }, { reload: false });
      draw();
      if (!answer) return;
      await studio.task(answer);
      await renew();
    });

    for (const name of ["rows", "selection", "shown"]) studio.on(name, draw);
    studio.on("dataset", () => {
      draw();
      if (panel.is_open()) renew();
    });
    only.addEventListener("change", draw);
    panel.on_open(() => {
      draw();
      renew();
    });
    panel.body.append(form, files);
  });
})();
