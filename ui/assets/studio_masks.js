// The Masks panel of the Dataset tab, and the tool that paints one in the viewer (studio_paint.js).
(() => {
  "use strict";
  const { h, setText, redraw, poll, call, act, confirm_dialog, paint_mask, studio } = window.safelight;

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

    async function fetch_it(one) {
      let answer = await act(server, "fetch_network", { name: one.name });
      if (answer?.confirm) {
        const agreed = await confirm_dialog(`${answer.confirm.join(". ")}. Fetch ${one.title} all the same?`, "Fetch");
        answer = agreed && (await act(server, "fetch_network", { name: one.name, confirmed: true }));
      }
      look();
    }

    async function do_download(one, action) {
      if (action === "remove" && !(await confirm_dialog(`Delete what has come of ${one.title}?`, "Delete"))) return;
      await act(server, "network_action", { id: one.download.id, action });
      look();
    }

    async function drop(one) {
      if (!(await confirm_dialog(`Remove ${one.title} from this machine? It can be fetched again.`, "Remove"))) return;
      await act(server, "remove_network", { name: one.name });
      look();
    }

    /** A network with what can be done about it: fetch, watch, cancel, go on, remove. */
    function card(one) {
      const state = one.download;
      return h(
        "div",
        { class: "sl-tagger", "data-network": one.name },
        h("p", {}, h("strong", {}, one.title), ": ", one.why, h("span", { class: "sl-muted" }, ` ${[one.size, one.licence, one.source].filter(Boolean).join(" · ")}`)),
        state ? h("p", { class: "sl-line" }, h("span", { class: `sl-chip sl-${state.tone}` }, state.word), " ", state.line) : null,
        state?.active ? h("progress", { max: "100", value: String(state.percent), "aria-label": `Download of ${one.title}` }) : null,
        state?.message ? h("p", { class: "sl-message sl-bad" }, state.message) : null,
        h(
          "div",
          { class: "sl-actions" },
          state ? state.actions.map(([action, label]) => button(label, () => do_download(one, action), { "data-key": `${action}-${one.name}`, "aria-label": `${label} ${one.title}` })) : null,
          one.here || state ? null : button(`Download (${one.size})`, () => fetch_it(one), { "data-key": `fetch-${one.name}`, "aria-label": `Download ${one.title}` }),
          one.here ? button("Remove", () => drop(one), { class: "sl-button sl-plain", "data-key": `drop-${one.name}`, "aria-label": `Remove ${one.title}` }) : null,
        ),
      );
    }

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
