// The Train tab's tools: the plan, what was changed, the fold with all settings and its search, the TOML dialog.
(() => {
  "use strict";
  const { h, redraw, open_dialog, copy, save_as } = window.safelight;

  /** What other tools and people call things, and the words of the settings for it. */
  const OTHER_WORDS = {
    vram: ["memory"],
    ram: ["memory"],
    oom: ["memory"],
    lr: ["learning rate"],
    holdout: ["held-out", "held out"],
    eval: ["held-out", "held out"],
    evaluation: ["held-out", "held out"],
    epochs: ["epoch", "steps"],
    network_dim: ["lora rank"],
    dim: ["rank"],
    network_alpha: ["lora alpha"],
    trigger: ["embedding word"],
    te: ["text encoder"],
    clip: ["text encoder", "max grad norm"],
    preview: ["sample"],
    previews: ["sample"],
    regularization: ["regularisation"],
    class_images: ["regularisation"],
    fp8: ["precision"],
    resume: ["continue"],
  };

  /** The form as this browser left it. It is kept again only once it has been read, so that no first drawing overwrites it. */
  const DRAFT = "safelight-train-form";
  let is_read = false;
  window.safelight.draft = () => {
    try {
      return JSON.parse(window.localStorage.getItem(DRAFT)) || {};
    } catch {
      return {}; // none that can be read, or a browser that stores nothing
    }
  };
  window.safelight.keep_drafts = () => {
    is_read = true;
  };
  function keep(draft) {
    try {
      window.localStorage.setItem(DRAFT, JSON.stringify(draft));
    } catch (error) {
      console.warn(`The form is not kept for a reload: ${error.message}`);
    }
  }

  window.safelight.define("form", ({ element, trigger, watch, props }) => {
    const plan = h("p", { class: "sl-message", role: "status" });
    const rates = h("div", { id: "planned-rates" });
    const changed = h("div", {});
    const all = () => document.getElementById("all-settings");
    const blocks = () => [...(all()?.querySelectorAll(".block[id^=set-]") || [])];
    const fold = h("button", { type: "button", class: "sl-button sl-fold", "aria-expanded": "false", "aria-controls": "all-settings" }, "All settings");
    const find = h("input", { type: "search", id: "setting-find", class: "sl-field", placeholder: "rank, caption, seed …" });
    const none = h("p", { class: "sl-muted", role: "status", hidden: true }, "No setting has these words.");
    const search = h("label", { for: "setting-find", class: "sl-search", hidden: true }, "Find a setting", find);
    const start = h("p", { id: "start-reason", class: "sl-muted", role: "status", hidden: true });
    element.replaceChildren(start, plan, rates, h("div", { class: "sl-bar" }, fold, search), changed, none);

    function open(is_open) {
      fold.setAttribute("aria-expanded", String(is_open));
      search.hidden = !is_open;
      all()?.toggleAttribute("data-open", is_open);
      if (is_open) fold.textContent = `All settings (${blocks().length})`;
    }
    fold.addEventListener("click", () => open(fold.getAttribute("aria-expanded") !== "true"));
    document.addEventListener("safelight:faults", () => {
      if (all()?.querySelector(".validation-error")) open(true);
    });

    find.addEventListener("input", () => {
      const words = find.value.toLowerCase().split(/\s+/).filter(Boolean).map((word) => [word, word.replaceAll(/[._]/g, "-"), ...(OTHER_WORDS[word] || [])]);
      let found = 0;
      for (const section of all().querySelectorAll(".sl-section")) {
        let here = 0;
        for (const block of section.querySelectorAll(".block[id^=set-]")) {
          const text = `${block.id.replaceAll("-", " ")} ${block.id} ${section.id} ${block.textContent}`.toLowerCase();
          const fits = words.every((ways) => ways.some((way) => text.includes(way)));
          block.toggleAttribute("data-filtered", !fits);
          here += fits;
        }
        section.toggleAttribute("data-filtered", !here);
        found += here;
      }
      none.hidden = found > 0;
    });

    /** A short note under each setting that has one: what a choice means ("about"), or that it does nothing ("inactive"). */
    function mark_notes(kind, texts) {
      for (const block of blocks()) {
        const text = texts[Object.keys(texts).find((name) => block.id === `set-${name.replaceAll(/[._]/g, "-")}`)] || "";
        const id = `${block.id}-${kind}`;
        let note = document.getElementById(id);
        const field = block.querySelector("input, textarea");
        if (text && !note) block.append((note = h("p", { id, class: `sl-${kind}` })));
        if (!text) note?.remove();
        else if (note.textContent !== text) note.textContent = text;
        const described = field?.getAttribute("aria-describedby") || "";
        if (!field || (described && !described.startsWith(block.id))) continue;
        const ids = [...block.querySelectorAll(":scope > .sl-about, :scope > .sl-inactive")].map((one) => one.id).join(" ");
        if (ids) field.setAttribute("aria-describedby", ids);
        else field.removeAttribute("aria-describedby");
      }
    }

    function draw_changes([list, reasons]) {
      if (!list.length) return [];
      const entry = (change) =>
        h(
          "li",
          {},
          h("span", {}, `${change.label}: ${change.from} → `, h("strong", {}, change.to)),
          reasons[change.name] ? h("span", { class: "sl-inactive" }, reasons[change.name]) : null,
          h(
            "button",
            { type: "button", class: "sl-button", "data-key": change.name, "aria-label": `Reset ${change.label} to ${change.from}`, onclick: () => trigger("reset", { name: change.name }) },
            "Reset",
          ),
        );
      return h(
        "details",
        { open: list.length <= 4 },
        h("summary", {}, list.length === 1 ? "You changed 1 setting" : `You changed ${list.length} settings`),
        h("ul", { class: "sl-changes" }, list.map(entry)),
      );
    }

    let inactive = {};

    function show_export({ name, text, command }) {
      const button = (label, work, kind = "") => h("button", { type: "button", class: `sl-button ${kind}`, onclick: work }, label);
      open_dialog(
        name,
        h(
          "div",
          {},
          h("p", {}, "The same run without a page:"),
          h("pre", { class: "sl-code", tabindex: "0", "aria-label": "Command" }, command),
          h(
            "div",
            { class: "sl-actions" },
            button("Copy the command", () => copy(command)),
            button("Copy the settings", () => copy(text)),
            button("Download", () => save_as(name, text), "sl-primary"),
          ),
          h("pre", { class: "sl-code", tabindex: "0", "aria-label": "Settings as TOML" }, text),
        ),
      );
    }

    /** What is to be known of an imported file. */
    function show_imported({ title, intro, lines }) {
      const list = lines.map(([tone, text]) => h("li", { class: `sl-${tone}` }, `${{ bad: "Differs: ", busy: "Note: " }[tone] || ""}${text}`));
      open_dialog(title, h("div", {}, h("p", {}, intro), list.length ? h("ul", { class: "sl-notes" }, list) : null));
    }

    function show() {
      const value = props.value || {};
      if (value.draft && is_read) keep(value.draft);
      if (value.imported) return show_imported(value.imported);
      if (value.foreign) return window.safelight.show_import_report(value.foreign);
      if (value.files) return window.safelight.show_files(value.files);
      if (value.export) return show_export(value.export);
      if (!value.plan) return;
      plan.className = `sl-message sl-${value.plan.tone}`;
      if (plan.textContent !== value.plan.text) plan.textContent = value.plan.text;
      start.hidden = !value.start;
      if (start.textContent !== (value.start || "")) start.textContent = value.start || "";
      rates.hidden = !value.rates;
      if (value.rates) redraw(rates, value.rates, window.safelight.rate_curve);
      inactive = value.inactive || inactive;
      mark_notes("about", value.about || {});
      mark_notes("inactive", inactive);
      redraw(changed, [value.changed, inactive], draw_changes);
    }
    watch("value", show);
    show();
  });
})();
