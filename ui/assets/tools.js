// The Tools tab: the LoRA files at hand, a form for each tool, and what came of it. Forms come from ui/tool_forms.py.
(() => {
  "use strict";
  const { h, setText, redraw, poll, call, act, notify, confirm_dialog, open_dialog, studio } = window.safelight;
  const LOOK_SECONDS = 120; // a large file on a slow disk

  const TONES = { waiting: "quiet", running: "busy", done: "good", failed: "bad", cancelled: "quiet" };
  const WORDS = { waiting: "Waiting", running: "Running", done: "Done", failed: "Failed", cancelled: "Cancelled" };
  const ENDINGS = { resize: "-small", convert: "-converted", edit: "-edited", bake: "-baked" };

  const button = (label, name, work, kind = "") =>
    h("button", { type: "button", class: `sl-button ${kind}`, "data-key": name, "aria-label": name, onclick: work }, label);
  const notes = (kind, texts) => (texts && texts.length ? h("ul", { class: `sl-notes sl-notes-${kind}` }, texts.map((text) => h("li", {}, text))) : null);
  const cell = (label, ...content) => h("td", { "data-label": label }, content); // the label is for phones, which show no head

  function facts_of(report) {
    const programs = (report.programs || []).map(([name, why]) => [name, why || "loads it whole"]);
    const rows = [...(report.facts || []), ...programs];
    return rows.length ? h("dl", { class: "sl-facts" }, rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])) : null;
  }

  function layers_of(report) {
    if (!report.layers || !report.layers.length) return null;
    const used = report.head.map((_, column) => report.layers.some((row) => row[column] !== null));
    const shown = (row) => row.filter((_, column) => used[column]);
    const head = h("thead", {}, h("tr", {}, shown(report.head).map((name) => h("th", { scope: "col" }, name))));
    const body = report.layers.map((row) => h("tr", {}, shown(row).map((value, column) => h(column ? "td" : "th", column ? {} : { scope: "row" }, value === null ? "" : String(value)))));
    return h(
      "details",
      {},
      h("summary", {}, `${report.layers.length.toLocaleString("en")} layers`),
      h("div", { class: "sl-scroll sl-layers", tabindex: "0", role: "region", "aria-label": "Layers" }, h("table", { class: "sl-table" }, head, h("tbody", {}, body))),
    );
  }

  const report_nodes = (report) =>
    [
      facts_of(report),
      notes("warning", [...(report.faults || []), ...(report.warnings || [])]),
      report.loads ? h("p", {}, report.loads) : null,
      notes("fact", report.notes),
      layers_of(report),
    ].filter(Boolean);

  window.safelight.define("tools", ({ element, server }) => {
    let state = { loras: [], models: [], tasks: [] };
    let forms = [];
    let open = null; // the form that is shown
    const reports = new Map();

    const failed = (error) => notify(error.told ? error.message : "Safelight does not answer. Is it still running?", "bad");

    // ---- files: what is here, sending one, and one of this machine ----

    const picker = h("input", { type: "file", id: "tools-file", accept: ".safetensors", multiple: true, class: "sl-hidden", tabindex: "-1", "aria-hidden": "true" });
    const bar = h("progress", { max: "1", "aria-label": "Sending files", hidden: true });
    const sent = h("p", { class: "sl-muted", role: "status" });
    const stop = h("button", { type: "button", class: "sl-button", hidden: true }, "Cancel");
    const zone = h(
      "div",
      { class: "sl-drop", id: "tools-drop" },
      h("p", {}, "Drop .safetensors files here"),
      h("div", { class: "sl-actions" }, h("button", { type: "button", class: "sl-button", id: "tools-choose", onclick: () => picker.click() }, "Choose files")),
      h("p", { class: "sl-muted" }, "They are checked and kept in workspace/loras."),
    );
    const path = h("input", { id: "tools-path", class: "sl-field", autocomplete: "off", spellcheck: "false", "aria-describedby": "tools-where" });
    const where = h("p", { class: "sl-muted", id: "tools-where" });
    const here = h("form", { class: "sl-form sl-tools-path" }, h("label", { for: path.id }, "A LoRA file on this machine", path), where, h("div", { class: "sl-actions" }, h("button", { class: "sl-button" }, "Bring it in")));
    const table = h("div", { id: "tools-files" });
    const shelf = h("details", { id: "tools-shelf" }, h("summary", {}, "Bring in a file"), h("div", { class: "sl-import-ways" }, h("div", {}, zone, picker, bar, sent, h("div", { class: "sl-actions" }, stop)), here));

    async function brought(work) {
      try {
        const answer = await work();
        notify(answer.text);
        await look();
        for (const field of fields.values()) field.choose?.(answer.names[0]);
      } catch (error) {
        failed(error);
      }
    }

    async function send(files) {
      const wanted = [...files].filter((file) => file.name.toLowerCase().endsWith(".safetensors"));
      if (!wanted.length) return notify("Only .safetensors files can be used here.", "bad");
      const sending = new studio.Sending(wanted.map((file, number) => ({ name: `${number}/${file.name}`, file })), () => {
        bar.max = sending.total || 1;
        bar.value = sending.sent;
        setText(sent, `Sent ${sending.done} of ${wanted.length}`);
      });
      bar.hidden = stop.hidden = false;
      stop.onclick = () => sending.stop();
      let whole = false;
      try {
        whole = await sending.run();
      } catch (error) {
        failed(error);
      }
      bar.hidden = stop.hidden = true;
      setText(sent, whole ? "" : "Not sent. Choose the files again.");
      if (whole) return brought(() => call(server, "lora_sent", { upload: sending.id }, LOOK_SECONDS));
      if (sending.failed.length) notify(`${sending.failed[0].one.file.name}: ${sending.failed[0].why}`, "bad");
      call(server, "lora_drop", { upload: sending.id }).catch(() => {}); // else it is swept later
    }

    picker.addEventListener("change", () => {
      if (picker.files.length) send(picker.files);
      picker.value = "";
    });
    for (const kind of ["dragover", "drop"]) {
      zone.addEventListener(kind, (event) => {
        if (![...(event.dataTransfer?.types || [])].includes("Files")) return;
        event.preventDefault();
        if (kind === "drop") send(event.dataTransfer.files);
      });
    }
    here.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!path.value.trim()) return path.focus();
      brought(async () => {
        const answer = await call(server, "lora_path", { path: path.value.trim() }, LOOK_SECONDS);
        path.value = "";
        return answer;
      });
    });

    async function inspect(lora) {
      const body = h("div", { class: "sl-form", role: "status" }, h("p", { class: "sl-muted" }, "Reading…"));
      open_dialog(lora.name, body);
      try {
        const found = await call(server, "lora_look", { name: lora.name }, LOOK_SECONDS);
        const entries = Object.entries(found.metadata);
        const said = h("details", {}, h("summary", {}, `Metadata (${entries.length})`), h("dl", { class: "sl-facts sl-layers" }, entries.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value.length > 2000 ? `${value.slice(0, 2000)}…` : value)])));
        body.replaceChildren(...report_nodes(found), ...(entries.length ? [said] : []));
      } catch (error) {
        body.replaceChildren(h("p", { class: "sl-message sl-bad", role: "alert" }, error.message));
      }
    }

    async function remove(lora) {
      if (!(await confirm_dialog(`Delete ${lora.name}?`, "Delete"))) return;
      await act(server, "lora_remove", { name: lora.name });
      look();
    }

    const row = (lora) =>
      h(
        "tr",
        {},
        h("th", { scope: "row" }, lora.name),
        cell("From", lora.run ? `run ${lora.run}` : "workspace/loras"),
        cell("Size", lora.size),
        h(
          "td",
          {},
          h(
            "div",
            { class: "sl-actions" },
            button("Inspect", `Inspect ${lora.name}`, () => inspect(lora)),
            h("a", { class: "sl-button", href: lora.url, download: "", "aria-label": `Download ${lora.name}` }, "Download"),
            lora.run ? null : button("Delete", `Delete ${lora.name}`, () => remove(lora), "sl-stop"),
          ),
        ),
      );

    const draw_files = (loras) =>
      loras.length
        ? h("table", { class: "sl-table sl-stack" }, h("thead", {}, h("tr", {}, ["Name", "From", "Size"].map((name) => h("th", { scope: "col" }, name)), h("td", {}))), h("tbody", {}, loras.map(row)))
        : h("p", { class: "sl-muted" }, "No LoRA yet. Train one, or bring in a file.");

    // ---- the tools ----

    const tool_bar = h("div", { class: "sl-panel-bar", role: "group", "aria-label": "Tools for LoRA files" });
    const panel = h("section", { class: "sl-panel", id: "tools-panel", hidden: true });
    const tasks = h("ul", { class: "sl-tasks", id: "tools-tasks" });
    const clear = h("button", { type: "button", class: "sl-button", id: "tools-dismiss-all", hidden: true, onclick: dismiss_all }, "Dismiss all");
    const unfolded = new Map(); // what a person has opened or folded, by task; else only the newest result is open
    const fields = new Map();

    function show(form) {
      open = open === form ? null : form;
      for (const one of tool_bar.children) one.setAttribute("aria-expanded", String(open !== null && one.id === `tools-open-${open.id}`));
      panel.hidden = !open;
      if (open) draw_form(open);
    }

    function draw_form(form) {
      fields.clear();
      const told = h("p", { class: "sl-message sl-bad", role: "alert" });
      const start = h("button", { class: "sl-button sl-primary", id: "tools-start" }, form.button);
      const boxes = form.fields.map((field) => {
        const made = MAKERS[field.kind](field, `tools-${form.id}-${field.name.replaceAll("_", "-")}`);
        fields.set(field.name, made);
        return made.box;
      });
      const body = h("form", {}, h("div", { class: "sl-prepare" }, boxes), told, h("div", { class: "sl-actions" }, start));
      body.addEventListener("submit", async (event) => {
        event.preventDefault();
        setText(told, "");
        start.disabled = true;
        const values = {};
        for (const [name, field] of fields) if (!field.box.hidden && field.value !== undefined) values[name] = field.value;
        try {
          await call(server, "tool_start", { tool: form.id, values }, LOOK_SECONDS);
          await look();
          tasks.scrollIntoView({ block: "nearest" });
          document.dispatchEvent(new CustomEvent("safelight:look"));
        } catch (error) {
          setText(told, error.told ? error.message : "Safelight does not answer. Is it still running?");
          told.scrollIntoView({ block: "nearest" });
        }
        start.disabled = false;
      });
      const heading = h("h3", { id: "tools-title", tabindex: "-1" }, form.title);
      const close = h("button", { type: "button", class: "sl-button sl-plain", "aria-label": `Close ${form.title}`, onclick: () => show(form) }, "Close");
      panel.setAttribute("aria-labelledby", heading.id);
      panel.replaceChildren(h("div", { class: "sl-panel-head" }, heading, close), h("p", { class: "sl-muted" }, form.about), body);
      depends("keep", (value) => value !== "rank", "amount");
      depends("in_place", (value) => !value, "name");
      refresh();
      suggest();
      if (form.id === "edit") fill_texts();
    }

    /** Shows a field only while another one has such a value. */
    function depends(name, wanted, other) {
      const [field, dependent] = [fields.get(name), fields.get(other)];
      if (!field || !dependent) return;
      const draw = () => (dependent.box.hidden = !wanted(field.value));
      field.box.addEventListener("change", draw);
      draw();
    }

    // ---- fields: each {box, value, refresh?, choose?} ----

    const framed = (field, id, input) =>
      h("div", { class: `sl-prepare-field sl-tool-${field.kind}` }, h("label", { for: id }, field.title), input, h("p", { id: `${id}-help`, class: "sl-muted" }, field.help));

    function options(select, values, empty) {
      const before = select.value;
      redraw(select, [values, empty], () => [...(empty ? [h("option", { value: "" }, empty)] : []), ...values.map(([value, words]) => h("option", { value }, words))]);
      if ([...select.options].some((one) => one.value === before)) select.value = before;
    }

    const pairs = (names) => names.map((name) => [name, name]);

    function chooser(field, id, names, empty) {
      const select = h("select", { id, class: "sl-select", "aria-describedby": `${id}-help` });
      return {
        box: framed(field, id, select),
        get value() { return select.value; },
        refresh: () => options(select, pairs(names()), empty),
        input: select,
      };
    }

    const MAKERS = {
      lora(field, id) {
        const made = chooser(field, id, () => state.loras.map((one) => one.name), "choose…");
        made.input.addEventListener("change", () => {
          suggest();
          if (open?.id === "edit") fill_texts();
        });
        made.choose = (name) => {
          made.input.value = name;
          made.input.dispatchEvent(new Event("change"));
        };
        return made;
      },
      model: (field, id) => chooser(field, id, () => state.models, field.optional ? "none" : "choose…"),
      choice(field, id) {
        const select = h("select", { id, class: "sl-select", "aria-describedby": `${id}-help` }, field.choices.map(([value, words]) => h("option", { value }, words)));
        select.value = field.default;
        return { box: framed(field, id, select), get value() { return select.value; } };
      },
      number(field, id) {
        const input = h("input", { id, type: "number", step: "any", class: "sl-field sl-short", "aria-describedby": `${id}-help` });
        input.value = field.default;
        return { box: framed(field, id, input), get value() { return input.value === "" ? null : input.valueAsNumber; } };
      },
      text: (field, id) => written(field, id, h("input", { id, type: "text", class: "sl-field", autocomplete: "off", "aria-describedby": `${id}-help` })),
      area: (field, id) => written(field, id, h("textarea", { id, class: "sl-field", rows: "3", "aria-describedby": `${id}-help` })),
      name(field, id) {
        const made = written(field, id, h("input", { id, type: "text", class: "sl-field", maxlength: "100", autocomplete: "off", spellcheck: "false", "aria-describedby": `${id}-help` }));
        made.input.addEventListener("input", () => (made.by_hand = made.input.value !== ""));
        return made;
      },
      tick(field, id) {
        const input = h("input", { id, type: "checkbox", checked: field.default === "on", "aria-describedby": `${id}-help` });
        const box = h("div", { class: "sl-prepare-field" }, h("label", { class: "sl-choice", for: id }, input, field.title), h("p", { id: `${id}-help`, class: "sl-muted" }, field.help));
        return { box, get value() { return input.checked; } };
      },
      loras(field, id) {
        const rows = h("div", { class: "sl-form" });
        let last = 0;
        const add = (name = "") => {
          const number = (last += 1);
          const select = h("select", { class: "sl-select", "aria-label": `LoRA ${number}` });
          const weight = h("input", { type: "number", step: "any", class: "sl-field sl-short", "aria-label": `Weight of LoRA ${number}`, value: "1" });
          const line = h("div", { class: "sl-weighted" }, select, weight, button("Remove", `Remove LoRA ${number}`, () => line.remove(), "sl-plain"));
          select.addEventListener("change", suggest);
          rows.append(line);
          options(select, pairs(state.loras.map((one) => one.name)), "choose…");
          if (name) select.value = name;
        };
        add();
        if (open?.id === "merge") add();
        const box = h("fieldset", { class: "sl-prepare-field sl-tool-loras", "aria-describedby": `${id}-help` }, h("legend", {}, field.title), rows, button("Add another", "Add another LoRA", () => add()), h("p", { id: `${id}-help`, class: "sl-muted" }, field.help));
        return {
          box,
          get value() {
            return [...rows.children].map((line) => ({ name: line.querySelector("select").value, weight: line.querySelector("input").valueAsNumber })).map(({ name, weight }) => ({ name, weight: Number.isFinite(weight) ? weight : null }));
          },
          refresh: () => [...rows.querySelectorAll("select")].forEach((select) => options(select, pairs(state.loras.map((one) => one.name)), "choose…")),
          choose: (name) => {
            const free = [...rows.querySelectorAll("select")].find((select) => !select.value);
            if (free) free.value = name;
            else add(name);
            suggest();
          },
        };
      },
    };

    /** A text; `fresh` holds what the file says already, which need not be sent again. */
    function written(field, id, input) {
      return {
        box: framed(field, id, input),
        input,
        fresh: undefined,
        get value() { return this.fresh !== undefined && input.value === this.fresh ? undefined : input.value; },
      };
    }

    const refresh = () => {
      for (const field of fields.values()) field.refresh?.();
    };

    /** A name for the result that is not taken, as long as nobody has typed one. */
    function suggest() {
      const field = fields.get("name");
      if (!field || field.by_hand || !open) return;
      const chosen = fields.get("lora")?.value || (fields.get("loras")?.value || []).map((one) => one.name).filter(Boolean).map((name) => name.split("/").pop()).slice(0, 3).join("+");
      if (!chosen) return void (field.input.value = "");
      const stem = `${chosen.split("/").pop()}${ENDINGS[open.id] || ""}`.slice(0, 90);
      const taken = new Set(open.id === "bake" ? state.models : state.loras.map((one) => one.name));
      let name = stem;
      for (let number = 2; taken.has(name); number += 1) name = `${stem}-${number}`;
      field.input.value = name;
    }

    let filling = 0;

    /** The texts that the chosen file carries, to be edited. */
    async function fill_texts() {
      const number = (filling += 1);
      const name = fields.get("lora").value;
      const texts = name ? await call(server, "lora_look", { name }, LOOK_SECONDS).then((found) => found.texts, (error) => void failed(error)) : {};
      if (number !== filling || open?.id !== "edit" || !texts) return;
      for (const [key, field] of fields) {
        if (!("fresh" in field) || key === "name" || key === "entries") continue;
        field.fresh = texts[key] || "";
        field.input.value = field.fresh;
      }
    }

    // ---- what goes on, and what came of it ----

    async function act_on(task, action) {
      try {
        await call(server, "tool_task", { id: task.id, action });
      } catch (error) {
        failed(error);
      }
      look();
    }

    async function details(task, box) {
      try {
        if (!reports.has(task.id)) reports.set(task.id, await call(server, "tool_report", { id: task.id }));
        box.replaceChildren(...report_nodes(reports.get(task.id)));
      } catch (error) {
        box.replaceChildren(h("p", { class: "sl-message sl-bad" }, error.message));
      }
    }

    async function dismiss_all() {
      await act(server, "tool_task", { action: "dismiss_all" });
      look();
      tool_bar.firstElementChild?.focus(); // the button is gone
    }

    /** What came of a task that is over, below its title; read when it is looked at. */
    function outcome(task, newest) {
      const found = h("div", { class: "sl-report" });
      const box = h(
        "details",
        { open: unfolded.get(task.id) ?? newest },
        h("summary", { "data-key": `fold ${task.id}`, onclick: () => unfolded.set(task.id, !box.open) }, task.title),
        h("p", { class: "sl-line" }, task.message),
        found,
      );
      const fill = () => box.open && task.report && !found.firstChild && details(task, found);
      box.addEventListener("toggle", fill);
      fill();
      return box;
    }

    function task_card(task, newest) {
      const line = [task.total ? `${task.done.toLocaleString("en")} of ${task.total.toLocaleString("en")}` : "", task.text, task.left].filter(Boolean).join(" · ");
      const result = task.result && task.result.url ? h("a", { class: "sl-button", href: task.result.url, download: "", "aria-label": `Download ${task.result.name}` }, "Download") : null;
      return h(
        "li",
        { class: "sl-task", "data-state": task.state },
        h("span", { class: `sl-chip sl-${TONES[task.state]}` }, WORDS[task.state]),
        h(
          "div",
          { class: "sl-task-middle" },
          task.active
            ? [h("strong", {}, task.title), " ", h("span", { class: "sl-line" }, line), h("progress", { max: String(task.total || 1), value: task.total ? String(task.done) : null, "aria-label": `Progress of ${task.title}` })]
            : outcome(task, newest),
        ),
        h("div", { class: "sl-actions" }, result, button(task.active ? "Cancel" : "Dismiss", `${task.active ? "Cancel" : "Dismiss"} ${task.title}`, () => act_on(task, task.active ? "cancel" : "dismiss"))),
      );
    }

    // ---- looking ----

    let round = 0;
    let busy = true;

    async function look() {
      state = await call(server, "tools_state");
      busy = state.tasks.some((task) => task.active);
      redraw(table, state.loras, draw_files);
      const over = state.tasks.filter((task) => !task.active);
      redraw(tasks, state.tasks, () => state.tasks.map((task) => task_card(task, task === over[0])));
      clear.hidden = over.length < 2;
      refresh();
      suggest();
      if (!forms.length) {
        const answer = await call(server, "tool_forms");
        forms = answer.tools;
        setText(where, answer.where);
        tool_bar.replaceChildren(...forms.map((form) => h("button", { type: "button", class: "sl-panel-button", id: `tools-open-${form.id}`, "aria-expanded": "false", "aria-controls": panel.id, onclick: () => show(form) }, form.title)));
      }
    }

    panel.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || event.defaultPrevented || !open) return;
      const opener = document.getElementById(`tools-open-${open.id}`);
      show(open);
      opener.focus();
    });
    element.replaceChildren(
      h("h2", {}, "LoRA files"), table, shelf,
      h("h2", {}, "What to do with them"), tool_bar, panel, h("div", { class: "sl-actions" }, clear), tasks,
    );
    poll(element, async () => {
      round += 1;
      if (!busy && round % 5 !== 1) return;
      try {
        await look();
      } catch (error) {
        redraw(table, error.message, (text) => h("p", { class: "sl-message sl-bad" }, text));
      }
    });
  });
})();
