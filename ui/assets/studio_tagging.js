// The panel "Tag pictures" of the Dataset tab: choose a tagger or captioner, fetch it, and let it write captions.
(() => {
  "use strict";
  const { h, setText, redraw, poll, call, notify, studio } = window.safelight;
  const KEY = "safelight-studio-tagging";
  const FIRST = ["general_threshold", "character_threshold", "prompt", "max_new_tokens", "mode"]; // the others are folded
  const MODES = { ignore: "leave it as it is", append: "add what is new", replace: "write it anew" };
  const KINDS = { tags: "Tags", sentence: "Sentences" };
  const TASK = /^<[A-Z_]+>$/;
  const OWN = "own prompt"; // no prompt of a network; the box says it

  window.safelight.define("studio_tagging", ({ element, server }) => {
    const panel = studio.panel(element, { id: "tagging", title: "Tag pictures", writes: true });
    let options = [];
    let taggers = [];
    let inputs = {};
    let rows = {};

    // ---- what is chosen is kept for the next time ------------------------------------------------------------------

    function kept() {
      try {
        return JSON.parse(window.localStorage.getItem(KEY)) || {};
      } catch {
        return {};
      }
    }

    const keep = () => window.localStorage.setItem(KEY, JSON.stringify(values()));

    // ---- taggers ---------------------------------------------------------------------------------------------------

    const first = h("select", { id: "studio-tagger", class: "sl-select" });
    const second = h("select", { id: "studio-tagger-too", class: "sl-select" });
    const about = h("div", { id: "studio-tagger-about" });
    const chosen = () => [first.value, second.value].filter((name, index, all) => name && all.indexOf(name) === index);
    const tagger = (name) => taggers.find((one) => one.name === name);

    function choices(select, none) {
      const before = select.value;
      const groups = [...new Set(taggers.map((one) => one.kind))].map((kind) =>
        h(
          "optgroup",
          { label: KINDS[kind] },
          taggers.filter((one) => one.kind === kind).map((one) => h("option", { value: one.name }, one.title + (one.here ? " (here)" : one.size ? ` (${one.size})` : ""))),
        ),
      );
      select.replaceChildren(...(none ? [h("option", { value: "" }, none)] : []), ...groups);
      if ([...select.options].some((option) => option.value === before)) select.value = before;
    }

    const card = (one) => studio.network_card(one, server, () => look());

    async function look_at_taggers() {
      if (!panel.is_open()) return;
      let state;
      try {
        state = await call(server, "tagging_state");
      } catch {
        return; // the strip says so when the server is away
      }
      const before = JSON.stringify(taggers.map((one) => [one.name, one.here]));
      taggers = state.taggers;
      if (JSON.stringify(taggers.map((one) => [one.name, one.here])) !== before) {
        choices(first);
        choices(second, "nobody else");
        if (!before.length || before === "[]") choose_kept();
      }
      setText(fault, state.fault);
      fault.hidden = !state.fault;
      draw();
    }

    /** What was chosen the last time, else a tagger that is here, else the one that the options name. */
    function choose_kept() {
      const names = (kept().models || []).filter(tagger);
      const usual = options.find((one) => one.name === "models")?.default || [];
      const here = taggers.find((one) => one.here)?.name;
      first.value = names[0] || here || usual[0] || taggers[0]?.name || "";
      second.value = names[1] || "";
    }

    // ---- options ---------------------------------------------------------------------------------------------------

    // Prompts for the captioner that is chosen; one with fixed tasks takes nothing else.
    const prompts = h("select", { id: "studio-tagging-prompts", class: "sl-select" });
    const ready = h("label", { for: prompts.id }, h("span", {}, "Ready-made prompts"), prompts);
    const asked = () => chosen().map(tagger).find((one) => one?.prompts.length);
    prompts.addEventListener("change", () => {
      if (prompts.value === OWN) return;
      inputs.prompt.value = prompts.value;
      inputs.prompt.dispatchEvent(new Event("change"));
    });

    function draw_prompts() {
      const one = asked();
      if (!inputs.prompt || !one) return;
      redraw(prompts, [one.name, one.prompts], () => [...(one.fixed ? [] : [h("option", { value: OWN }, "the one that is written here")]), ...one.prompts.map(([name, text]) => h("option", { value: text }, name))]);
      if (!one.fixed && TASK.test(inputs.prompt.value)) inputs.prompt.value = ""; // chosen for another network, not written
      const usual = one.prompts[0][1];
      const written = inputs.prompt.value.trim() || usual;
      const known = one.prompts.some(([, text]) => text === written);
      prompts.value = known ? written : one.fixed ? usual : OWN;
      inputs.prompt.placeholder = usual;
      inputs.prompt.closest("label").hidden = one.fixed;
    }

    const shown_value = (value) => (Array.isArray(value) ? value.join(", ") : String(value));

    function field(option) {
      const id = `studio-tagging-${option.name.replaceAll("_", "-")}`;
      const attributes = { id, "aria-describedby": `${id}-help`, autocomplete: "off" };
      const value = kept()[option.name] ?? option.default;
      let input;
      if (option.kind === "switch") input = h("input", { ...attributes, type: "checkbox", checked: value === true });
      else if (option.kind === "choice") {
        const words = option.name === "mode" ? MODES : {};
        input = h("select", { ...attributes, class: "sl-select" }, option.choices.map((choice) => h("option", { value: choice }, words[choice] || choice)));
        input.value = value;
      } else if (option.kind === "number" || option.kind === "integer") {
        const step = option.kind === "number" ? "0.01" : "1";
        input = h("input", { ...attributes, class: "sl-field", type: "number", step, min: option.minimum, max: option.maximum });
        input.value = shown_value(value);
      } else {
        input = h(option.name === "prompt" ? "textarea" : "input", { ...attributes, class: "sl-field", rows: option.name === "prompt" ? "2" : null });
        input.value = shown_value(value);
        if (option.kind === "lines") studio.complete(input);
      }
      input.addEventListener("change", () => {
        keep();
        draw();
      });
      inputs[option.name] = input;
      const name = option.name === "mode" ? "A picture that has a caption" : option.title;
      const help = h("p", { class: "sl-muted", id: `${id}-help` }, option.help);
      const label = option.kind === "switch" ? h("label", { class: "sl-choice", for: id }, input, name) : h("label", { for: id }, h("span", {}, name), input);
      rows[option.name] = h("div", { class: "sl-option" }, label, option.name === "prompt" ? ready : null, help);
      return rows[option.name];
    }

    /** The options as the server takes them. What is no number goes as it was typed: the server names it. */
    function values() {
      const found = { models: chosen() };
      for (const option of options) {
        const input = inputs[option.name];
        if (!input) continue;
        if (option.kind === "switch") found[option.name] = input.checked;
        else if (option.kind === "number" || option.kind === "integer") found[option.name] = input.value.trim() === "" || Number.isNaN(Number(input.value)) ? input.value : Number(input.value);
        else found[option.name] = input.value;
      }
      return found;
    }

    /** What was written for another captioner stays in the box, but isn't sent to one that has fixed tasks. */
    function sent() {
      const found = values();
      const one = asked();
      if (one?.fixed && !one.prompts.some(([, text]) => text === found.prompt)) found.prompt = "";
      return found;
    }

    // ---- the form --------------------------------------------------------------------------------------------------

    const fault = h("p", { class: "sl-message sl-bad", role: "alert", id: "studio-tagging-fault", hidden: true });
    const main = h("div", { class: "sl-options" });
    const more = h("div", { class: "sl-options" });
    const go = h("button", { class: "sl-button sl-primary", id: "studio-tag-pictures" }, "Tag");
    const note = h("p", { class: "sl-muted", role: "status" });
    const form = h(
      "form",
      { class: "sl-edit" },
      h("div", { class: "sl-bar" }, h("label", { for: first.id }, h("span", {}, "Tagger or captioner"), first), h("label", { for: second.id }, h("span", {}, "together with"), second)),
      about,
      fault,
      main,
      h("details", {}, h("summary", {}, "More options"), more),
      h("div", { class: "sl-actions" }, go, note),
    );

    const untagged = (names) => names.filter((name) => !studio.row(name)?.caption);

    /** What the button does is on the button. */
    function draw() {
      const used = chosen().map(tagger).filter(Boolean);
      redraw(about, used, () => used.map(card));
      const kinds = new Set(used.map((one) => one.kind));
      for (const option of options) {
        if (!rows[option.name]) continue;
        const fits = option.for === "both" || kinds.has(option.for);
        const asks = option.name !== "prompt" || used.some((one) => one.takes_prompt);
        const merges = option.name !== "merge" || used.filter((one) => one.kind === "tags").length > 1;
        rows[option.name].hidden = !(fits && asks && merges);
      }
      draw_prompts();
      const names = studio.scope();
      const keeps = inputs.mode?.value === "ignore";
      const count = keeps ? untagged(names).length : names.length;
      setText(go, keeps && count < names.length ? `Tag ${studio.pictures(count)} without a caption` : `Tag ${studio.scope_text()}`);
      const lacking = used.filter((one) => !one.here);
      go.disabled = !count || !used.length || lacking.length > 0;
      setText(note, lacking.length ? `${lacking.map((one) => one.title).join(" and ")} is not on this machine yet.` : count ? `Looked at: ${studio.scope_text()}. One step to undo.` : "Every picture here has a caption.");
      const left = untagged(studio.rows.map((row) => row.name)).length;
      panel.note(left ? `${left.toLocaleString("en")} to do` : "");
    }

    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (go.disabled) return;
      keep();
      go.disabled = true;
      await studio.act(server, "tag_pictures", { names: studio.scope(), options: sent() });
      draw();
    });

    const look = poll(panel.body, look_at_taggers);
    for (const select of [first, second]) {
      select.addEventListener("change", () => {
        keep();
        draw();
      });
    }
    for (const event of ["rows", "selection", "shown", "dataset"]) studio.on(event, draw);
    panel.on_open(async () => {
      if (!options.length) {
        try {
          ({ options } = await call(server, "tagging_form"));
        } catch (error) {
          return notify(error.message, "bad");
        }
        for (const option of options) {
          if (option.name !== "models") (FIRST.includes(option.name) ? main : more).append(field(option));
        }
      }
      look();
    });
    panel.body.append(form);
    draw();
  });
})();
