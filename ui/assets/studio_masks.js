// The Masks panel of the Dataset tab, and the tool that paints one in the viewer (studio_paint.js).
(() => {
  "use strict";
  const { h, setText, redraw, poll, call, paint_mask, studio } = window.safelight;

  window.safelight.define("studio_masks", ({ element, server }) => {
    const panel = studio.panel(element, { id: "masks", title: "Masks", writes: true });
    const button = (label, work, attributes = {}) => h("button", { type: "button", class: "sl-button", onclick: work, ...attributes }, label);
    let networks = [];

    studio.viewer_tool({ id: "mask", title: "Mask", start: (viewer) => paint_mask(viewer, server) });

    // ---- making ---------------------------------------------------------------------------------------------------

    const source = h("select", { id: "studio-mask-source", class: "sl-select" }, h("option", { value: "alpha" }, "transparent parts of the pictures"));
    const replace = h("input", { type: "checkbox", id: "studio-mask-replace" });
    const about = h("div");
    const fault = h("p", { class: "sl-message sl-bad", role: "alert", hidden: true });
    const make = h("button", { class: "sl-button sl-primary", id: "studio-make-masks" }, "Make masks");
    const note = h("p", { class: "sl-muted", role: "status" });
    const form = h(
      "form",
      { class: "sl-edit" },
      h(
        "div",
        { class: "sl-bar" },
        h("label", { for: source.id }, h("span", {}, "Make masks from"), source),
        h("label", { class: "sl-choice", for: replace.id }, replace, "Also where there is one already"),
      ),
      about,
      fault,
      h("div", { class: "sl-actions" }, make, note),
    );
    const masked = () => studio.scope().filter((name) => studio.row(name)?.mask);
    const invert = button("Invert", () => studio.act(server, "invert", { names: masked() }));
    const remove = button("Remove", () => studio.act(server, "remove_masks", { names: masked() }));
    const count = h("p", { role: "status" });
    const network = () => networks.find((one) => one.name === source.value);

    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (make.disabled) return;
      make.disabled = true;
      await studio.act(server, "make_masks", { names: studio.scope(), source: source.value, replace: replace.checked });
      draw();
    });

    function draw() {
      const names = studio.scope();
      const have = masked().length;
      const wanted = replace.checked ? names.length : names.length - have;
      const chosen = network();
      const missing = chosen && !chosen.here;
      setText(make, `Make masks of ${studio.pictures(wanted)}`);
      make.disabled = !wanted || Boolean(missing);
      setText(note, missing ? `${chosen.title} is not on this machine yet.` : wanted ? "One step to undo." : "Every picture here has a mask.");
      setText(count, `${have.toLocaleString("en")} of ${studio.scope_text()} ${have === 1 ? "has" : "have"} a mask.`);
      invert.disabled = remove.disabled = !have;
      redraw(about, chosen || null, () => (chosen ? [card(chosen)] : [h("p", { class: "sl-muted" }, "What is transparent in a PNG or WebP picture is left out.")]));
      const all = studio.rows.filter((row) => row.mask).length;
      panel.note(all ? all.toLocaleString("en") : "");
    }

    // ---- the networks -----------------------------------------------------------------------------------------------

    const card = (one) => studio.network_card(one, server, () => look());

    async function look_at_networks() {
      if (!panel.is_open()) return;
      let state;
      try {
        state = await call(server, "mask_networks");
      } catch {
        return; // the strip says so when the server is away
      }
      networks = state.networks;
      const chosen = source.value;
      redraw(source, networks.map((one) => [one.name, one.here]), () => [
        h("option", { value: "alpha" }, "transparent parts of the pictures"),
        h("optgroup", { label: "The subject, found by a network" }, networks.map((one) => h("option", { value: one.name }, `${one.title} ${one.here ? "(here)" : `(${one.size})`}`))),
      ]);
      source.value = chosen;
      setText(fault, state.fault);
      fault.hidden = !state.fault;
      draw();
    }

    const look = poll(panel.body, look_at_networks);
    for (const control of [source, replace]) control.addEventListener("change", draw);
    for (const event of ["rows", "row", "selection", "shown", "dataset"]) studio.on(event, draw);
    panel.on_open(look);
    panel.body.append(
      h("p", { class: "sl-muted" }, "What a mask leaves out counts little in training, or not at all (“Use masks” and “Unmasked weight” in the settings). To paint one, open a picture ( Space ) and choose Mask."),
      form,
      h("h4", {}, "Masks that are here"),
      h("div", { class: "sl-actions" }, invert, remove, count),
    );
    draw();
  });
})();
