// The Runs tab: the list, and one run in five views. A live run, a reloaded page and an old run are the same to it.
(() => {
  "use strict";
  const { h, setText, redraw, poll, call, act, confirm_dialog, open_dialog, notify, copy, remember, loss_curve, sample_rows } = window.safelight;
  const PARTS = [
    ["live", "Live"],
    ["samples", "Samples"],
    ["files", "Files"],
    ["log", "Log"],
    ["settings", "Settings used"],
  ];
  const MAX_LINES = 5000;

  window.safelight.define("runs", ({ element, server, trigger, watch, props }) => {
    const state = {
      run: new URL(window.location.href).searchParams.get("run"),
      part: "live",
      lines: 0,
      drawn: "",
      config: "",
      detail: null,
    };

    // -- the frame, drawn once --
    const list = h("ul", { class: "sl-runlist" });
    const heading = h("h2", { class: "sl-run-name" });
    const chip = h("span", { class: "sl-chip" });
    const line = h("p", { class: "sl-muted sl-headline" });
    const message = h("div", {});
    const buttons = h("div", { class: "sl-actions" });
    const panels = Object.fromEntries(
      PARTS.map(([id]) => [id, h("div", { role: "tabpanel", id: `run-${id}`, "aria-labelledby": `run-tab-${id}`, class: "sl-part" })]),
    );
    const tabs = PARTS.map(([id, label]) =>
      h("button", { type: "button", role: "tab", id: `run-tab-${id}`, "aria-controls": `run-${id}`, onclick: () => show_part(id) }, label),
    );
    const tablist = h("div", { role: "tablist", class: "sl-parts", "aria-label": "Views of this run", onkeydown: part_key }, tabs);
    const detail = h(
      "div",
      { class: "sl-run" },
      h("div", { class: "sl-run-head" }, heading, chip),
      line,
      message,
      buttons,
      tablist,
      Object.values(panels),
    );
    const empty = h(
      "div",
      { class: "sl-card sl-empty" },
      h("h2", {}, "No runs yet"),
      h("p", {}, "A run appears here as soon as it is started: from the Train tab, or with the sample set on the Start tab."),
    );
    element.replaceChildren(
      h("div", { class: "sl-runs" }, h("nav", { "aria-label": "Runs" }, h("h2", { class: "sl-hidden" }, "All runs"), list), detail, empty),
    );

    const curve_box = h("div", { class: "sl-card" });
    const facts = h("dl", { class: "sl-facts" });
    panels.live.append(h("div", { class: "sl-live" }, curve_box, facts));
    const log = h("div", { class: "sl-log", role: "log", "aria-live": "off", "aria-label": "Log of this run", tabindex: "0" });
    const log_link = h("a", { class: "sl-button", download: true }, "Download");
    panels.log.append(
      h(
        "div",
        { class: "sl-actions" },
        h("button", { type: "button", class: "sl-button", onclick: copy_log }, "Copy the last 200 lines"),
        log_link,
      ),
      log,
    );
    const config_text = h("pre", { class: "sl-code", tabindex: "0", "aria-label": "Settings as TOML" });
    const config_link = h("a", { class: "sl-button", download: true }, "Download");
    panels.settings.append(
      h(
        "div",
        { class: "sl-actions" },
        h("button", { type: "button", class: "sl-button", onclick: () => copy(config_text.textContent) }, "Copy"),
        config_link,
      ),
      config_text,
    );

    function part_key(event) {
      const at = PARTS.findIndex(([id]) => id === state.part);
      const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: PARTS.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      const [id] = PARTS[(to + PARTS.length) % PARTS.length];
      show_part(id);
      tabs.find((tab) => tab.id === `run-tab-${id}`).focus();
    }

    function show_part(part) {
      state.part = part;
      for (const tab of tabs) {
        const selected = tab.id === `run-tab-${part}`;
        tab.setAttribute("aria-selected", String(selected));
        tab.tabIndex = selected ? 0 : -1;
      }
      for (const [id, panel] of Object.entries(panels)) panel.hidden = id !== part;
      if (part === "log") log.scrollTop = log.scrollHeight;
    }

    function copy_log() {
      copy([...log.children].slice(-200).map((row) => row.textContent).join("\n"));
    }

    function start_afresh(run) {
      Object.assign(state, { shown: run, lines: 0, drawn: "", config: "" });
      log.replaceChildren();
    }

    function select(run) {
      state.run = run;
      if (run !== state.shown) start_afresh(run);
      remember({ run });
      look();
    }

    // -- drawing --
    function draw_list(runs) {
      redraw(list, [runs, state.shown], () =>
        runs.map((run) =>
          h(
            "li",
            {},
            h(
              "button",
              {
                type: "button",
                class: "sl-run-row",
                "data-key": run.id,
                "aria-current": run.id === state.shown ? "true" : null,
                onclick: () => select(run.id),
              },
              h("span", { class: "sl-run-id" }, run.id),
              h("span", { class: `sl-run-state sl-${run.tone}` }, [run.word, run.text].filter(Boolean).join(" · ")),
            ),
          ),
        ),
      );
    }

    function draw_run(run) {
      setText(heading, run.id);
      chip.className = `sl-chip sl-${run.tone}`;
      setText(chip, run.word);
      setText(line, run.headline);
      redraw(message, [run.message, run.failed, run.warnings, run.notice, run.best], () => [
        run.message ? h("p", { class: `sl-message ${run.failed ? "sl-bad" : "sl-busy"}`, role: run.failed ? "alert" : null }, run.message) : null,
        run.notice ? h("p", { class: "sl-message sl-busy", role: "status" }, run.notice) : null,
        run.best ? h("p", { class: "sl-message sl-good" }, run.best) : null,
        ...run.warnings.map((text) => h("p", { class: "sl-message" }, text)),
      ]);
      redraw(buttons, [run.id, run.actions], () => run.actions.map((action) => action_button(run, action)));
      redraw(facts, run.facts, () => run.facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
      redraw(panels.samples, run.samples, () => sample_rows(run.samples));
      redraw(panels.files, [run.files, run.active, run.links.rebuild], () => [...file_rows(run), rebuild_row(run)]);
      log_link.href = run.links.log;
      config_link.href = run.links.config;
    }

    function action_button(run, [action, label]) {
      const pressed = () => press(run, action);
      const kind = action === run.primary ? "sl-primary" : ["stop", "delete"].includes(action) ? "sl-stop" : "";
      return h(
        "button",
        { type: "button", class: `sl-button ${kind}`, "data-key": action, "aria-label": `${label}: ${run.id}`, onclick: pressed },
        label,
      );
    }

    function leave() {
      Object.assign(state, { run: null, shown: null });
      remember({ run: null });
    }

    async function press(run, action) {
      if (action === "again") {
        trigger("again", { run: run.id });
        return;
      }
      if (action === "extend") {
        extend(run);
        return;
      }
      if (action === "delete" && !(await confirm_dialog(`Delete ${run.id} with its samples and LoRA files?`, "Delete"))) return;
      const answer = await act(server, "run_action", { run: run.id, action });
      if (answer && (action === "delete" || action === "cancel")) leave();
      look();
    }

    /** Asks for the number of steps, and lets the run go on to it. */
    function extend(run) {
      const field = h("input", { type: "number", class: "sl-field", id: "extend-steps", min: "1", step: "1", inputmode: "numeric", value: String(run.step < run.total ? run.total : run.total + Math.ceil(run.total / 2)) });
      const fault = h("p", { class: "sl-message sl-bad", role: "alert", hidden: true });
      const form = h(
        "form",
        { class: "sl-bar", novalidate: true },
        h("label", { for: field.id }, "Steps in all", field),
        h("button", { type: "submit", class: "sl-button sl-primary" }, "Go on"),
      );
      const told = `Step ${run.step} of ${run.total} is done. The learning rate follows its schedule over the new number of steps.`;
      const dialog = open_dialog(`Go on with ${run.id}`, h("div", {}, h("p", {}, told), form, fault));
      field.addEventListener("input", () => (fault.hidden = true));
      form.addEventListener("submit", async (event) => {
        event.preventDefault();
        const steps = field.value.trim() && Number.isInteger(field.valueAsNumber) ? field.valueAsNumber : field.value;
        try {
          const answer = await call(server, "run_action", { run: run.id, action: "extend", steps });
          dialog.close();
          notify(answer.text);
          look();
        } catch (error) {
          fault.textContent = error.told ? error.message : "Safelight does not answer. Is it still running?";
          fault.hidden = false;
          field.focus();
        }
      });
      field.select();
    }

    function hash_button(file) {
      if (!file.sha256) return null;
      const told = { title: `SHA-256 ${file.sha256}: copy it`, "aria-label": `Copy the SHA-256 of ${file.name}, ${file.sha256.slice(0, 8)} and so on` };
      return h("button", { type: "button", class: "sl-hash", onclick: () => copy(file.sha256), ...told }, `sha256 ${file.sha256.slice(0, 8)}…`);
    }

    function rebuild_row(run) {
      if (!run.links.rebuild) return null;
      const name = `${run.id}-rebuild.json`;
      return h(
        "div",
        { class: "sl-message" },
        h("p", {}, "One file rebuilds this run, here or elsewhere: its settings, the hash of every picture, of the base and of the result, and all versions."),
        h("p", {}, "Open it with Import on the Train tab, or with: ", h("code", {}, `python launch.py rebuild ${name}`)),
        h("a", { class: "sl-button", href: run.links.rebuild, download: name }, "Download the rebuild file"),
      );
    }

    function file_rows(run) {
      if (!run.files.length) {
        const text = run.active ? "The LoRA is written when the run ends, or now with Save now." : "This run wrote no LoRA.";
        return [h("p", { class: "sl-muted" }, text)];
      }
      const row = (file) =>
        h(
          "tr",
          {},
          h("th", { scope: "row" }, file.name, " ", file.recommended ? h("span", { class: "sl-chip sl-good" }, "Recommended") : null),
          h("td", { "data-label": "Step" }, String(file.step)),
          h("td", { "data-label": "Size" }, file.size, hash_button(file)),
          h("td", { "data-label": "For" }, file.fits, file.unfit.length ? h("ul", { class: "sl-notes sl-muted" }, file.unfit.map((text) => h("li", {}, text))) : null),
          h("td", {}, h("a", { class: "sl-button", href: file.url, download: file.name, "aria-label": `Download ${file.name}` }, "Download")),
        );
      const head = ["File", "Step", "Size", "For", ""].map((name) => (name ? h("th", { scope: "col" }, name) : h("td", {})));
      return [
        h("div", { class: "sl-scroll" }, h("table", { class: "sl-table sl-files sl-stack" }, h("thead", {}, h("tr", {}, head)), h("tbody", {}, run.files.map(row)))),
        run.files.some((file) => file.usable && !file.is_word)
          ? h("p", { class: "sl-muted" }, "ComfyUI: put the file into models/loras and load it with Load LoRA. A1111 and Forge: put it into models/Lora and pick it in the Lora tab.")
          : null,
        run.files.some((file) => file.usable && file.is_word)
          ? h("p", { class: "sl-muted" }, "The file of a trained word goes into models/embeddings, where ComfyUI calls it embedding:WORD; in A1111 and Forge into embeddings, where the word alone calls it.")
          : null,
      ];
    }

    function add_lines(lines) {
      if (!lines.length) return;
      const at_end = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      log.append(...lines.map(([, text]) => h("div", {}, text)));
      while (log.childElementCount > MAX_LINES) log.firstChild.remove();
      state.lines = lines.at(-1)[0] + 1;
      if (at_end) log.scrollTop = log.scrollHeight;
    }

    function show(answer) {
      empty.hidden = answer.runs.length > 0;
      detail.hidden = !answer.run;
      if (answer.run && answer.run.id !== state.shown) start_afresh(answer.run.id);
      draw_list(answer.runs);
      if (!answer.run) return;
      draw_run(answer.run);
      add_lines(answer.lines);
      if (answer.config) setText(config_text, (state.config = answer.config));
      if (answer.curve) {
        state.drawn = answer.drawn;
        redraw(curve_box, [answer.curve, answer.run.loss_text], () => loss_curve(answer.curve, answer.run.loss_text));
      }
    }

    const look = poll(element, async () => {
      const run = state.run;
      const asked = { run, shown: state.shown || "", lines: state.lines, drawn: state.drawn, config: Boolean(state.config) };
      try {
        const answer = await call(server, "runs_state", asked);
        if (run === state.run) show(answer);
      } catch (error) {
        if (error.told) leave(); // deleted from another page
      }
    });

    const chosen = (run) => run && select(run);
    document.addEventListener("safelight:run", (event) => chosen(event.detail));
    watch("value", () => chosen(props.value?.run));
    if (props.value?.run) chosen(props.value.run);
    show_part("live");
  });
})();
