// The panel "Check quality" of the Dataset tab: what was found, which pictures it is about, and a button that mends it.
(() => {
  "use strict";
  const { h, redraw, call, notify, studio } = window.safelight;
  const SHOWN = 200; // names in a list; the grid shows the rest

  window.safelight.define("studio_quality", ({ element, server }) => {
    const panel = studio.panel(element, { id: "quality", title: "Check quality" });
    const check = h("button", { type: "button", class: "sl-button sl-primary", id: "studio-quality-check" }, "Check all pictures and captions");
    const held_out = h("select", { id: "studio-quality-held-out", class: "sl-select" });
    const tagger = h("select", { id: "studio-quality-tagger", class: "sl-select" });
    const summary = h("p", { role: "status", id: "studio-quality-summary" });
    const note = h("p", { class: "sl-muted" });
    const list = h("ul", { class: "sl-findings", id: "studio-findings" });
    panel.body.append(
      h("div", { class: "sl-bar" }, check, h("label", { for: "studio-quality-held-out" }, "Must not share pictures with", held_out), h("label", { for: "studio-quality-tagger" }, "Also compare what is seen by", tagger)),
      summary,
      note,
      list,
    );

    const TONES = { problem: "bad", warning: "busy", hint: "quiet" };
    const WORDS = { problem: "Problem", warning: "Warning", hint: "Hint" };
    const opened = new Set();
    let state = { others: [], taggers: [], report: null, problems: {} };
    let asked = 0;
    let working = false;

    // ---- one finding ------------------------------------------------------------------------------------------------

    /** Where pictures are selected, a button is about those of them that the finding names. */
    function meant(names) {
      const chosen = names.filter((name) => studio.selection.has(name));
      return chosen.length ? chosen : names;
    }

    function fix_button(finding, fix, place) {
      const names = Object.keys(finding.notes);
      const some = meant(names);
      const label = some.length < names.length ? `${fix.button} (${some.length.toLocaleString("en")} selected)` : fix.button;
      return h(
        "button",
        {
          type: "button",
          class: "sl-button",
          "data-key": `${finding.kind}-${fix.name}`,
          "aria-label": `${finding.title}: ${label}`,
          disabled: working || null,
          onclick: () => start("fix_finding", { kind: finding.kind, fix: fix.name, names: some }),
        },
        label,
      );
    }

    function entry(name, finding) {
      const known = studio.row(name);
      const shown = known ? h("button", { type: "button", class: "sl-opens", onclick: () => studio.open_viewer(name) }, name) : h("strong", {}, name);
      return h("li", {}, shown, ": ", finding.notes[name]);
    }

    function names_of(finding) {
      const names = Object.keys(finding.notes);
      const grouped = finding.groups.length ? finding.groups.flat().filter((name) => name in finding.notes) : names;
      const more = names.length > SHOWN ? h("li", {}, `and ${(names.length - SHOWN).toLocaleString("en")} more: select them to see them in the grid`) : null;
      const details = h(
        "details",
        { open: opened.has(finding.kind) },
        h("summary", { "data-key": `names-${finding.kind}` }, names.length === 1 ? "Which one" : "Which ones"),
        h("ul", { class: "sl-skipped" }, grouped.slice(0, SHOWN).map((name) => entry(name, finding)), more),
      );
      details.addEventListener("toggle", () => (details.open ? opened.add(finding.kind) : opened.delete(finding.kind)));
      return details;
    }

    function select(finding) {
      const names = Object.keys(finding.notes).filter((name) => studio.row(name));
      studio.set_selection(names);
      notify(`${studio.pictures(names.length)} selected.`);
    }

    function card(finding) {
      return h(
        "li",
        { class: "sl-finding", "data-kind": finding.kind },
        h("span", { class: `sl-chip sl-${TONES[finding.severity]}` }, WORDS[finding.severity]),
        h(
          "div",
          { class: "sl-finding-middle" },
          h("p", {}, finding.sentence),
          h(
            "div",
            { class: "sl-actions" },
            studio.builtin ? null : finding.fixes.map((fix, place) => fix_button(finding, fix, place)),
            h("button", { type: "button", class: "sl-button", "data-key": `select-${finding.kind}`, "aria-label": `Select the pictures: ${finding.title}`, onclick: () => select(finding) }, "Select"),
          ),
          names_of(finding),
        ),
      );
    }

    // ---- all of it --------------------------------------------------------------------------------------------------

    function sentence(report) {
      if (working) return "Looking at every picture and caption…";
      if (!report) return "Not checked yet. Every picture is looked at once; a later check takes moments.";
      const stale = report.stale ? " The dataset was changed since: check again." : "";
      return `${report.sentence}${stale}`;
    }

    function draw() {
      const { report } = state;
      const text = sentence(report);
      summary.className = report && !report.stale && !report.findings.length && !working ? "sl-message sl-good" : "";
      if (summary.textContent !== text) summary.textContent = text;
      note.textContent = report ? [report.note, studio.builtin && report.findings.length ? "This dataset is built in: copy it to change it." : ""].filter(Boolean).join(" ") : "";
      check.disabled = working || !studio.rows.length;
      const findings = report ? report.findings : [];
      const chosen = findings.map((finding) => meant(Object.keys(finding.notes)).length);
      redraw(list, [studio.name, studio.builtin, working, findings, chosen], () => findings.map(card));
      panel.note(report && findings.length ? String(findings.length) : "");
    }

    function draw_others() {
      const kept = state.report ? state.report.held_out : held_out.value;
      redraw(held_out, state.others, () => [
        h("option", { value: "" }, "no other dataset"),
        ...state.others.map((name) => h("option", { value: name }, name)),
      ]);
      held_out.value = state.others.includes(kept) ? kept : "";
      const seen_by = state.report ? state.report.tagger : tagger.value;
      redraw(tagger, state.taggers, () => [
        h("option", { value: "" }, state.taggers.length ? "no tagger" : "no tagger (fetch one under Tag pictures)"),
        ...state.taggers.map((one) => h("option", { value: one.name }, one.title)),
      ]);
      tagger.value = state.taggers.some((one) => one.name === seen_by) ? seen_by : "";
    }

    async function load() {
      if (!studio.name) return;
      const mine = (asked += 1);
      let answer;
      try {
        answer = await call(server, "quality_state", { dataset: studio.name }, 60);
      } catch (error) {
        if (mine === asked && panel.is_open()) notify(error.told ? error.message : "Safelight does not answer. Is it still running?", "bad");
        return;
      }
      if (mine !== asked) return;
      state = answer;
      studio.set_problems(state.problems);
      draw_others();
      draw();
    }

    async function start(name, argument = {}) {
      if (working) return;
      working = true;
      draw();
      const answer = await studio.act(server, name, { ...argument, training: studio.training, held_out: held_out.value, tagger: tagger.value }, { reload: false });
      if (answer && answer.task) {
        const task = await studio.task(answer);
        if (name === "fix_finding" || task.state !== "done") notify(task.message, task.state === "failed" ? "bad" : undefined);
      }
      working = false;
      await load();
    }

    check.addEventListener("click", () => start("check_quality"));
    panel.on_open(load);
    studio.on("dataset", () => {
      state = { others: [], taggers: [], report: null, problems: {} };
      load();
    });
    studio.on("rows", () => {
      if (state.report) load();
      else draw();
    });
    studio.on("selection", draw);
  });
})();
