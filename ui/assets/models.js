// The Models tab: a link to check and fetch, the downloads, what is here and what is suggested.
(() => {
  "use strict";
  const { h, redraw, poll, call, act, notify, confirm_dialog } = window.safelight;
  const CHECK_SECONDS = 120;

  /** A link to a hub's page; anything that is not https is only text. */
  function outside(address, label) {
    const safe = URL.canParse(address) && new URL(address).protocol === "https:";
    return safe ? h("a", { href: address, target: "_blank", rel: "noopener noreferrer" }, label) : h("span", {}, label);
  }

  const button = (label, name, work, kind = "") =>
    h("button", { type: "button", class: `sl-button ${kind}`, "data-key": name, "aria-label": name, onclick: work }, label);

  const list = (kind, texts) => (texts.length ? h("ul", { class: `sl-notes sl-notes-${kind}` }, texts.map((text) => h("li", {}, text))) : null);

  window.safelight.define("models", ({ element, server, trigger, watch, props }) => {
    const field = h("input", {
      type: "text", class: "sl-field", id: "model-link", maxlength: "1024", spellcheck: "false", autocomplete: "off",
      placeholder: "owner/name, a page's address, civitai:VERSION",
    });
    const check_button = h("button", { class: "sl-button sl-primary", id: "check-model" }, "Check");
    const asking = h("form", { class: "sl-bar sl-ask" }, h("label", { for: "model-link" }, "Hugging Face or Civitai link", field), check_button);
    const fault = h("div", { id: "model-fault" });
    const found = h("div", { id: "model-found", "aria-live": "polite" });
    const downloads = h("div", { id: "model-downloads" });
    const table = h("div", { class: "sl-scroll" });
    const told = h("div", { role: "status" });
    const suggested = h("div", { class: "sl-scroll", id: "model-catalog" });
    const hint = "Tokens for gated or private models are never typed here: see Settings, Tokens.";
    element.replaceChildren(
      h("p", { class: "sl-muted" }, "Nothing is fetched before you have seen what it is. ", hint),
      fault, asking, found, downloads,
      h("h2", {}, "Here already"), table, told,
      h("h2", {}, "Suggested"), suggested,
    );

    // ---- a link and what it brings ----

    let asked = 0;

    async function check(text, file = "") {
      const number = (asked += 1);
      field.value = text;
      check_button.disabled = true;
      found.replaceChildren(h("p", { class: "sl-message sl-busy" }, "Asking the hub …"));
      try {
        const plan = await call(server, "check_source", { text, file }, CHECK_SECONDS);
        if (number === asked) found.replaceChildren(card(plan, text));
      } catch (error) {
        if (number === asked) found.replaceChildren(h("p", { class: "sl-message sl-bad", role: "alert" }, error.message));
      } finally {
        if (number === asked) check_button.disabled = false;
      }
    }

    asking.addEventListener("submit", (event) => {
      event.preventDefault();
      if (field.value.trim()) check(field.value.trim());
      else field.focus();
    });

    function card(plan, text) {
      const facts = h("dl", { class: "sl-facts" }, plan.facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
      facts.append(h("dt", {}, "Licence"), h("dd", {}, plan.licence, " ", plan.licence_link ? outside(plan.licence_link, "(read it)") : null));
      facts.prepend(h("dt", {}, "From"), h("dd", {}, `${plan.service}, `, outside(plan.page, plan.source)));
      const box = h("div", { class: "sl-card" }, h("h3", {}, plan.title), facts, list("fact", plan.notes), list("warning", plan.warnings));
      if (plan.ready) box.append(starter(plan));
      else box.append(chooser(plan, text));
      return box;
    }

    function chooser(plan, text) {
      const options = plan.choices.map(([file, label], index) =>
        h("label", { class: "sl-choice" }, h("input", { type: "radio", name: "model-file", value: file, checked: index === 0 }), label),
      );
      const box = h("form", {}, h("fieldset", { class: "sl-choices" }, h("legend", {}, "Which one?"), options), h("button", { class: "sl-button sl-primary" }, "Check this one"));
      box.addEventListener("submit", (event) => {
        event.preventDefault();
        check(text, new FormData(box).get("model-file"));
      });
      return box;
    }

    function starter(plan) {
      const name = h("input", { type: "text", class: "sl-field", id: "model-fetch-name", maxlength: "100" });
      name.value = plan.name;
      const agree = plan.confirm.length ? tick("model-agree", "I know this and want it all the same") : null;
      const convert = plan.convert
        ? tick("model-convert", "This format can run code when it is opened. Convert it in a sandbox and keep the tensors only")
        : null;
      const box = h(
        "form",
        {},
        list("confirm", plan.confirm),
        agree,
        convert,
        h("div", { class: "sl-bar" }, h("label", { for: name.id }, "Name in the library", name), h("button", { class: "sl-button sl-primary", id: "download-model" }, "Download")),
      );
      box.addEventListener("submit", async (event) => {
        event.preventDefault();
        const ticked = (one) => Boolean(one?.querySelector("input").checked);
        const wanted = { plan: plan.plan, name: name.value.trim(), confirmed: ticked(agree), convert: ticked(convert) };
        try {
          const answer = await call(server, "download", wanted);
          notify(answer.text);
          field.value = "";
          found.replaceChildren();
          look_now();
        } catch (error) {
          box.querySelector(".sl-message")?.remove();
          box.append(h("p", { class: "sl-message sl-bad", role: "alert" }, error.message));
        }
      });
      return box;
    }

    const tick = (id, label) => h("label", { class: "sl-choice", for: id }, h("input", { type: "checkbox", id }), label);

    // ---- downloads ----

    async function do_download(one, action) {
      if (action === "remove" && !one.done && !(await confirm_dialog(`Delete what has come of ${one.name}?`, "Delete"))) return;
      await act(server, "download_action", { id: one.id, action });
      look_now();
    }

    const download_card = (one) =>
      h(
        "li",
        { class: "sl-card sl-download", "data-download": one.name },
        h("div", { class: "sl-download-head" }, h("span", { class: `sl-chip sl-${one.tone}` }, one.word), h("strong", {}, one.name), h("span", { class: "sl-line" }, one.line)),
        one.active ? h("progress", { max: "100", value: String(one.percent), "aria-label": `Download of ${one.name}` }) : null,
        one.message ? h("p", { class: "sl-message sl-bad" }, one.message) : null,
        h("div", { class: "sl-actions" }, one.actions.map(([action, label]) => button(label, `${label} ${one.name}`, () => do_download(one, action), action === "remove" && !one.done ? "sl-stop" : ""))),
      );

    const draw_downloads = (all) => (all.length ? [h("h2", {}, "Downloads"), h("ul", { class: "sl-downloads" }, all.map(download_card))] : []);

    // ---- what is here, what is suggested ----

    async function remove(model) {
      if (!(await confirm_dialog(`Remove ${model.name} from the library?`, "Remove"))) return;
      await act(server, "remove", { name: model.name });
      look_now();
    }

    const head = (names) => h("thead", {}, h("tr", {}, names.map((name) => (name ? h("th", { scope: "col" }, name) : h("td", {})))));
    const cell = (label, ...content) => h("td", { "data-label": label }, content); // the label is for phones, which show no head

    const model_row = (model) =>
      h(
        "tr",
        {},
        h("th", { scope: "row" }, model.name),
        cell("Family", model.family),
        cell("Size", model.size),
        cell("Predicts", model.prediction),
        cell("State", h("span", { class: model.tone ? `sl-${model.tone}` : "" }, model.state)),
        cell("Came from", model.source),
        cell("Used by", model.used),
        h(
          "td",
          {},
          h(
            "div",
            { class: "sl-actions" },
            model.usable ? button("Use", `Use ${model.name}`, () => trigger("use", { name: model.name })) : null,
            model.builtin ? null : button("Remove", `Remove ${model.name}`, () => remove(model), "sl-stop"),
          ),
        ),
      );

    const draw_models = (models) =>
      h("table", { class: "sl-table sl-stack" }, head(["Name", "Family", "Size", "Predicts", "State", "Came from", "Used by", ""]), h("tbody", {}, models.map(model_row)));

    const catalog_row = (row) =>
      h(
        "tr",
        {},
        h("th", { scope: "row" }, row.title),
        h("td", {}, row.why),
        cell("Family", row.family),
        cell("Size", row.size),
        cell("Licence", row.licence),
        h("td", {}, button("Check", `Check ${row.title}`, () => {
          check(row.name);
          asking.scrollIntoView({ block: "start" });
        })),
      );

    const draw_catalog = (rows) => h("table", { class: "sl-table sl-stack" }, head(["Model", "What for", "Family", "Size", "Licence", ""]), h("tbody", {}, rows.map(catalog_row)));

    // ---- looking ----

    let round = 0;
    let busy = true;
    let done = null;

    const look = poll(element, async () => {
      round += 1;
      if (!busy && round % 5 !== 1) return;
      try {
        const state = await call(server, "models_state");
        busy = state.downloads.some((one) => one.active);
        redraw(fault, state.fault, (text) => (text ? h("p", { class: "sl-message sl-bad" }, text) : []));
        redraw(downloads, state.downloads, draw_downloads);
        redraw(table, state.models, draw_models);
        redraw(suggested, state.catalog, draw_catalog);
        const now = state.downloads.filter((one) => one.done).length;
        if (done !== null && now > done) trigger("arrived");
        done = now;
      } catch (error) {
        redraw(table, error.message, (text) => h("p", { class: "sl-message sl-bad" }, text));
      }
    });

    function look_now() {
      round = 0;
      busy = true;
      look();
    }

    watch("value", () => {
      const { text, tone } = props.value || {};
      told.replaceChildren(...(text ? [h("p", { class: `sl-message sl-${tone}` }, text)] : []));
      look_now();
    });
  });
})();
