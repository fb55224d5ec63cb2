// The Tags panel of the Dataset tab: the table of tags, and operations on captions with a preview.
(() => {
  "use strict";
  const { h, setText, redraw, call, notify, studio } = window.safelight;
  const ROWS = 200; // of the table at once
  const TYPING_MS = 350;
  const INPUTS = {
    tags: ["Tags", "one or more, with commas between them"],
    find: ["Find", "the text that is to be replaced"],
    text: ["New text", "what it becomes"],
  };
  const TEXT_LABELS = { rename: "New tag", merge: "New tag", trigger: "Trigger word" };

  window.safelight.define("studio_tags", ({ element, server }) => {
    const panel = studio.panel(element, { id: "tags", title: "Tags", writes: true });
    const field = (id, attributes = {}) => h("input", { id, class: "sl-field", autocomplete: "off", spellcheck: "false", ...attributes });
    const button = (label, work, attributes = {}) => h("button", { type: "button", class: "sl-button", onclick: work, ...attributes }, label);

    let operations = [];
    let table = { tags: [], num_tags: 0, trigger_word: "" };
    let chosen = new Set();
    let shown = ROWS;
    let plan = null;
    let asked = 0;
    let loaded = 0;
    let stale = true;

    // ---- the table of tags ------------------------------------------------------------------------------------

    const search = field("studio-tag-search", { type: "search", placeholder: "part of a tag" });
    const order = h("select", { id: "studio-tag-order", class: "sl-select" }, h("option", { value: "count" }, "most pictures first"), h("option", { value: "name" }, "by name"));
    const summary = h("p", { class: "sl-muted", role: "status" });
    const list = h("ul", { class: "sl-tags" });
    const more = button("Show more tags", () => {
      shown += ROWS;
      draw_table();
    });
    const with_chosen = [
      button("Show their pictures", show_pictures),
      button("Rename", () => start("rename")),
      button("Merge", () => start("merge")),
      button("Remove", () => start("remove")),
      button("Move to the front", () => start("front")),
      button("Add to the pictures", () => start("add")),
    ];
    const chosen_note = h("span", { class: "sl-muted", role: "status" });

    /** Types the tags into the grid's Find field. */
    function show_pictures() {
      const find = document.getElementById("dataset-find");
      find.value = [...chosen].map((tag) => `tag:"${tag.replaceAll('"', "")}"`).join(" ");
      find.dispatchEvent(new Event("input", { bubbles: true }));
      find.focus();
    }

    function draw_table() {
      const words = search.value.trim().toLowerCase();
      const found = table.tags.filter(([tag]) => tag.toLowerCase().includes(words));
      if (order.value === "name") found.sort(([one], [other]) => one.localeCompare(other));
      setText(summary, `${found.length.toLocaleString("en")} of ${table.num_tags.toLocaleString("en")} tags in ${studio.scope_text()}`);
      redraw(list, [found.slice(0, shown), [...chosen]], () => found.slice(0, shown).map(tag_item));
      more.hidden = found.length <= shown;
      setText(chosen_note, chosen.size ? `${chosen.size} chosen` : "Choose tags to work with them.");
      for (const one of with_chosen) one.disabled = !chosen.size;
    }

    function tag_item([tag, pictures], index) {
      const box = h("input", { type: "checkbox", id: `studio-tag-${index}`, "data-key": tag, checked: chosen.has(tag) });
      box.addEventListener("change", () => {
        if (box.checked) chosen.add(tag);
        else chosen.delete(tag);
        draw_table();
      });
      const count = h("span", { class: "sl-muted" }, pictures.toLocaleString("en"), h("span", { class: "sl-hidden" }, pictures === 1 ? " picture" : " pictures"));
      return h("li", {}, h("label", { class: "sl-choice", for: box.id }, box, h("span", {}, tag), " ", count));
    }

    // ---- the operation ----------------------------------------------------------------------------------------

    const choice = h("select", { id: "studio-operation", class: "sl-select" });
    const help = h("p", { class: "sl-muted", id: "studio-operation-help" });
    const inputs = Object.fromEntries(Object.keys(INPUTS).map((name) => [name, field(`studio-edit-${name}`)]));
    const ignore_case = h("input", { type: "checkbox", id: "studio-ignore-case" });
    const labels = Object.fromEntries(
      Object.entries(INPUTS).map(([name, [title, hint]]) => {
        inputs[name].placeholder = hint;
        return [name, h("label", { for: inputs[name].id }, h("span", {}, title), inputs[name])];
      }),
    );
    const case_label = h("label", { class: "sl-choice", for: ignore_case.id }, ignore_case, "Ignore upper and lower case");
    const outcome = h("p", { role: "status" });
    const fault = h("p", { class: "sl-message sl-bad", role: "alert", id: "studio-edit-fault", hidden: true });
    const examples = h("ul", { class: "sl-examples" });
    const apply_button = h("button", { class: "sl-button sl-primary", disabled: true }, "Apply");
    const form = h(
      "form",
      { class: "sl-edit", "aria-describedby": help.id },
      h("div", { class: "sl-bar" }, h("label", { for: choice.id }, "What to do", choice), labels.tags, labels.find, labels.text, case_label),
      help,
      fault,
      h("div", { class: "sl-actions" }, apply_button, outcome),
      examples,
    );

    const row = () => operations.find((one) => one.name === choice.value);
    const takes = (name) => row() && (row().needs.includes(name) || row().may_have.includes(name));

    function draw_form() {
      if (!row()) return;
      setText(help, row().help);
      for (const name of Object.keys(INPUTS)) labels[name].hidden = !takes(name);
      setText(labels.text.firstChild, TEXT_LABELS[choice.value] || "New text");
      case_label.hidden = !takes("ignore_case");
    }

    /** Chooses an operation and fills its fields. */
    function fill(name, values) {
      choice.value = name;
      for (const key of Object.keys(INPUTS)) if (key in values) inputs[key].value = values[key];
      draw_form();
    }

    /** An operation on the chosen tags: to its form, ready to be looked at. */
    function start(name) {
      fill(name, { tags: [...chosen].join(", "), text: "" });
      preview();
      form.scrollIntoView({ block: "nearest" });
      (takes("text") ? inputs.text : apply_button).focus();
    }

    function request() {
      const values = { operation: choice.value, ignore_case: takes("ignore_case") && ignore_case.checked };
      for (const name of Object.keys(INPUTS)) values[name] = takes(name) ? inputs[name].value : "";
      const everything = !studio.selection.size && studio.shown.length === studio.rows.length;
      return { dataset: studio.name, names: everything ? null : studio.scope(), ...values };
    }

    const complete_enough = () => row() && row().needs.every((name) => (name === "find" ? inputs[name].value : inputs[name].value.trim()));

    function show_plan(answer, error = "") {
      plan = answer;
      fault.hidden = !error;
      setText(fault, error);
      setText(outcome, answer ? `${answer.sentence} Looked at: ${studio.scope_text()}.` : "");
      apply_button.disabled = !answer?.applies;
      setText(apply_button, answer?.changed ? `Change ${answer.changed.toLocaleString("en")} ${answer.changed === 1 ? "caption" : "captions"}` : "Apply");
      redraw(examples, answer?.examples || [], () => (answer?.examples || []).map(example));
      if (answer && answer.changed > answer.examples.length) examples.append(h("li", { class: "sl-muted" }, `and ${(answer.changed - answer.examples.length).toLocaleString("en")} more`));
    }

    async function preview() {
      const number = (asked += 1);
      if (!panel.is_open() || !complete_enough()) return show_plan(null);
      await studio.flush();
      try {
        const answer = await call(server, "preview_edit", request());
        if (number === asked) show_plan(answer);
      } catch (error) {
        if (number === asked) show_plan(null, error.message);
      }
    }

    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (!plan?.applies) return;
      apply_button.disabled = true;
      const answer = await studio.act(server, "apply_edit", { ...request(), digest: plan.digest });
      if (!answer) return preview();
      if (!answer.stale) return;
      show_plan(answer);
      notify("The captions have changed since. Nothing was done: look at the changes again.", "bad");
    });

    // ---- what is asked from the server -----------------------------------------------------------------------------

    let typing;
    const soon = () => {
      asked += 1; // an answer on its way is about what stood there before
      apply_button.disabled = true;
      window.clearTimeout(typing);
      typing = window.setTimeout(preview, TYPING_MS);
    };

    async function load() {
      stale = true;
      if (!studio.name) return;
      const number = (loaded += 1);
      const whole = !studio.selection.size && studio.shown.length === studio.rows.length;
      try {
        if (!operations.length) {
          ({ operations } = await call(server, "tag_operations"));
          choice.replaceChildren(...operations.map((one) => h("option", { value: one.name }, one.title)));
          draw_form();
        }
        const answer = await call(server, "tag_table", { dataset: studio.name, names: whole || !panel.is_open() ? null : studio.scope() });
        if (number !== loaded) return;
        stale = false;
        if (whole || !panel.is_open()) studio.tags = answer.tags;
        table = answer;
      } catch (error) {
        if (number === loaded) setText(summary, error.message);
        return;
      }
      panel.note(table.num_tags ? table.num_tags.toLocaleString("en") : "");
      const there = new Set(table.tags.map(([tag]) => tag));
      chosen = new Set([...chosen].filter((tag) => there.has(tag)));
      if (panel.is_open()) draw_table();
    }

    let loading;
    const load_soon = () => {
      window.clearTimeout(loading);
      loading = window.setTimeout(async () => {
        await load();
        if (panel.is_open()) soon();
      }, 150);
    };

    search.addEventListener("input", () => {
      shown = ROWS;
      draw_table();
    });
    order.addEventListener("change", draw_table);
    choice.addEventListener("change", () => {
      if (choice.value === "trigger" && table.trigger_word) inputs.text.value = table.trigger_word;
      if (row().example.length && !inputs.tags.value.trim()) inputs.tags.value = row().example.join(", ");
      draw_form();
      soon();
    });
    for (const input of [...Object.values(inputs), ignore_case]) input.addEventListener("input", soon);
    inputs.text.dataset.single = "";
    for (const box of [inputs.tags, inputs.text]) studio.complete(box);
    studio.on("dataset", () => {
      chosen = new Set();
      shown = ROWS;
      table = { tags: [], num_tags: 0, trigger_word: "" };
      show_plan(null);
    });
    studio.on("rows", load_soon);
    for (const event of ["selection", "shown"]) studio.on(event, () => panel.is_open() && load_soon());
    panel.on_open(load_soon);

    panel.body.append(
      h("div", { class: "sl-bar" }, h("label", { for: search.id }, "Search the tags", search), h("label", { for: order.id }, "Order", order)),
      summary,
      h("div", { class: "sl-tag-box", role: "region", tabindex: "0", "aria-label": "Tags" }, list, more),
      h("div", { class: "sl-actions" }, ...with_chosen, chosen_note),
      h("h4", {}, "Change captions"),
      form,
    );
    draw_table();
    load_soon();
  });

  /** One caption before and after: parts that go are struck out, parts that come are underlined; both say so in words. */
  function example([name, before, after]) {
    const parts = (text) => text.split(",").map((part) => part.trim());
    const old_parts = parts(before);
    const new_parts = parts(after);
    const marked = (list, other, tag, word) =>
      list.flatMap((part, index) => {
        const text = other.includes(part) ? part : h(tag, {}, h("span", { class: "sl-hidden" }, `${word} `), part);
        return index ? [", ", text] : [text];
      });
    return h(
      "li",
      {},
      h("strong", {}, name),
      h("p", {}, before ? marked(old_parts, new_parts, "del", "removed") : h("em", {}, "no caption")),
      h("p", {}, after ? marked(new_parts, old_parts, "ins", "added") : h("em", {}, "empty")),
    );
  }
})();
