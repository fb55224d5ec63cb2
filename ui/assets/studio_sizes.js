// The panel "Sizes and crops" of the Dataset tab: the table of sizes that training will use, and the repeats of folders.
(() => {
  "use strict";
  const { h, redraw, call, notify, studio } = window.safelight;
  const WAIT_MS = 400;

  window.safelight.define("studio_sizes", ({ element, server, trigger }) => {
    const panel = studio.panel(element, { id: "sizes", title: "Sizes and crops" });
    const summary = h("p", { role: "status", id: "studio-sizes-summary" });
    const parts = h("div", {});
    panel.body.append(summary, parts);

    let asked = 0;
    let waiting = 0;
    let seen = "";

    const number = (value) => value.toLocaleString("en", { maximumFractionDigits: 2 });
    const count = (value, one, many = `${one}s`) => `${number(value)} ${value === 1 ? one : many}`;
    const button = (label, key, work, name = label) =>
      h("button", { type: "button", class: "sl-button", "data-key": key, "aria-label": name, onclick: work }, label);

    function select(names) {
      studio.set_selection(names);
      notify(`${studio.pictures(names.length)} selected.`);
    }

    function table(caption, heads, rows) {
      return h(
        "div",
        { class: "sl-scroll", tabindex: "0", role: "region", "aria-label": caption },
        h(
          "table",
          { class: "sl-table sl-stack" },
          h("caption", { class: "sl-hidden" }, caption),
          h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head.startsWith("(") ? h("span", { class: "sl-hidden" }, head.slice(1, -1)) : head)))),
          h("tbody", {}, rows),
        ),
      );
    }

    // ---- the sizes ------------------------------------------------------------------------------------------------

    function size_row(row, plan) {
      const name = row.size.join("×");
      const notes = [];
      if (row.pictures === 1 && plan.batch_size > 1) notes.push("one picture, alone in its batches");
      else if (row.looks < plan.batch_size) notes.push(`never fills a batch of ${plan.batch_size}`);
      return h(
        "tr",
        {},
        h("th", { scope: "row" }, name),
        h("td", { class: "sl-count", "data-label": "Pictures" }, number(row.pictures)),
        h("td", { class: "sl-count", "data-label": "Looks per epoch" }, number(row.looks)),
        h("td", { class: "sl-count", "data-label": "Batches per epoch" }, number(row.batches)),
        h("td", {}, notes.join(", ")),
        h("td", {}, row.names.length ? button("Select", `size-${name}`, () => select(row.names), `Select the pictures of ${name}`) : ""),
      );
    }

    function lone_sizes(plan) {
      const lone = plan.buckets.filter((row) => row.pictures === 1);
      if (!lone.length || plan.batch_size === 1 || plan.buckets.length === 1) return null;
      return h(
        "p",
        { class: "sl-message sl-quiet" },
        `${lone.length === 1 ? "1 size has" : `${lone.length} sizes have`} only one picture. Trained in the nearest other size it would share its batches, and lose a little more at its borders. `,
        button("Join single pictures with the nearest size", "join", () => trigger("join", {})),
      );
    }

    // ---- pictures ---------------------------------------------------------------------------------------------------

    function fact(text, names, key) {
      return h("li", {}, text, " ", button("Select", key, () => select(names), `Select them: ${text}`));
    }

    function crops(plan) {
      const why = "Open a picture (Space) and drag the frame to choose another crop.";
      if (plan.random_crops) return h("li", {}, `Pictures are cut at ${count(plan.random_crops, "place")}, taken in turn, where there is something to cut off. ${why}`);
      return plan.chosen.length ? null : h("li", {}, `Every crop is cut from the middle. ${why}`);
    }

    function facts(plan) {
      const all = [...new Set(plan.buckets.flatMap((row) => row.names))];
      const enlarged = Object.entries(plan.enlarged);
      const most = Math.max(...enlarged.map(([, times]) => times));
      return h(
        "ul",
        { class: "sl-notes" },
        enlarged.length ? fact(`${studio.pictures(enlarged.length)} smaller than the size trained at, enlarged up to ${number(most)} times.`, enlarged.map(([name]) => name), "enlarged") : null,
        plan.chosen.length ? fact(`${studio.pictures(plan.chosen.length)} with a crop chosen by hand.`, plan.chosen, "chosen") : null,
        crops(plan),
        plan.more_resolutions.map((one) => (one.pictures < all.length ? h("li", {}, `${studio.pictures(all.length - one.pictures)} too small to be trained at ${one.resolution}×${one.resolution} as well.`) : null)),
        plan.masked.length ? fact(`${studio.pictures(plan.masked.length)} with a mask: what is white is learned.`, plan.masked, "masked") : null,
        plan.use_masks ? null : h("li", {}, "Masks are switched off on the Train tab (use masks)."),
      );
    }

    function skipped(plan) {
      if (!plan.num_skipped) return null;
      return h(
        "details",
        { open: plan.num_skipped <= 5 },
        h("summary", {}, `${studio.pictures(plan.num_skipped)} can't be trained`),
        h("ul", { class: "sl-skipped" }, plan.skipped.map(([name, why]) => h("li", {}, h("strong", {}, name), ": ", why))),
      );
    }

    // ---- repeats ----------------------------------------------------------------------------------------------------

    function folder_row(row) {
      const shown = row.folder || "the top folder";
      const id = `studio-repeats-${row.folder || "top"}`;
      const box = h("input", { type: "number", id, class: "sl-field sl-short", min: "1", max: "1000", step: "1", "data-key": id, "aria-label": `Repeats of ${shown}`, disabled: studio.builtin || null });
      box.value = row.repeats;
      const save = async (repeats) => {
        if ((await studio.act(server, "folder_repeats", { folder: row.folder, repeats })) === null) box.value = row.repeats;
      };
      box.addEventListener("change", () => {
        if (Number.isInteger(box.valueAsNumber)) save(box.valueAsNumber);
        else {
          notify("Repeats are a whole number from 1 to 1000. Nothing was changed.", "bad");
          box.value = row.repeats;
        }
      });
      const why = row.is_set ? "set here" : /^\d+_/.test(row.folder.split("/").pop()) ? "from the folder's name" : "from the Train tab";
      return h(
        "tr",
        {},
        h("th", { scope: "row" }, shown),
        h("td", { class: "sl-count", "data-label": "Pictures" }, number(row.pictures)),
        h("td", { "data-label": "Repeats" }, box),
        h("td", {}, why),
        h("td", {}, row.is_set && !studio.builtin ? button(`Back to ${row.unset}`, `unset-${row.folder}`, () => save(null), `Repeats of ${shown} back to ${row.unset}`) : ""),
      );
    }

    function source_row(row) {
      return h(
        "tr",
        {},
        h("th", { scope: "row" }, row.open ? `${row.name} (open)` : row.name),
        h("td", { "data-label": "For" }, row.role),
        h("td", { class: "sl-count", "data-label": "Weight" }, row.weight),
        h("td", { class: "sl-count", "data-label": "Pictures" }, number(row.pictures)),
        h("td", { class: "sl-count", "data-label": "Looks per epoch" }, number(row.looks)),
        h("td", { "data-label": "Trigger word" }, row.trigger),
      );
    }

    // ---- all of it --------------------------------------------------------------------------------------------------

    function sentence(plan) {
      const each = plan.accumulation > 1 ? `${plan.batch_size} × ${plan.accumulation}` : String(plan.batch_size);
      return (
        `${count(plan.buckets.length, "size")} of ${[plan.resolution, ...plan.more_resolutions.map((one) => one.resolution)].map((side) => `${side}×${side}`).join(" and ")} pixels in area, sides in steps of ${plan.step}. ` +
        `${count(plan.looks_per_epoch, "look")} in batches of ${each} = ${count(plan.steps_per_epoch, "step")} per epoch; ` +
        `${count(plan.max_steps, "step")} = ${count(plan.epochs, "epoch")}.`
      );
    }

    /** Which pictures only measure the loss. */
    function held_out(plan) {
      const { pictures, folder, names, sure } = plan.held_out;
      if (!pictures) return null;
      if (folder) return h("p", {}, `${count(pictures, "picture")} of ${folder} are held out: never trained, only measured.`);
      const told = h("p", {}, `${count(pictures, "picture")} of this run are held out: never trained, only measured. No picture that is trained looks like one of them.`);
      const note = h("p", { class: "sl-muted" }, "Not all pictures were looked at yet, so the run may hold out others. A check on Quality looks at them.");
      if (!names.length) return h("div", {}, told, sure ? null : note);
      const list = h("details", {}, h("summary", {}, `Held out of this dataset: ${number(names.length)}`), h("ul", {}, names.map((name) => h("li", {}, name))));
      return h("div", {}, told, sure ? list : note);
    }

    function build(plan) {
      return [
        plan.note ? h("p", { class: "sl-message sl-bad" }, plan.note) : null,
        table("Sizes that training uses", ["Size", "Pictures", "Looks per epoch", "Batches per epoch", "(Remarks)", "(Choose)"], plan.buckets.map((row) => size_row(row, plan))),
        lone_sizes(plan),
        facts(plan),
        held_out(plan),
        skipped(plan),
        h("h4", {}, "Repeats"),
        h("p", { class: "sl-muted" }, "How often an epoch looks at the pictures of a folder."),
        table("Repeats of each folder", ["Folder", "Pictures", "Repeats", "(Set by)", "(Undo)"], plan.folders.map(folder_row)),
        plan.sources.length > 1 ? h("h4", {}, "Datasets of this run") : null,
        plan.sources.length > 1
          ? table("Datasets of this run", ["Dataset", "For", "Weight", "Pictures", "Looks per epoch", "Trigger word"], plan.sources.map(source_row))
          : null,
      ].filter(Boolean);
    }

    async function load() {
      if (!panel.is_open() || !studio.name) return;
      const mine = (asked += 1);
      let plan;
      try {
        plan = await call(server, "sizes_plan", { dataset: studio.name, training: studio.training }, 60);
      } catch (error) {
        plan = { fault: error.told ? error.message : "Safelight does not answer." };
      }
      if (mine !== asked) return;
      const fault = plan.fault || (plan.buckets.length ? "" : "There is no picture to train on yet.");
      const text = fault || sentence(plan);
      summary.className = fault ? "sl-message sl-bad" : "";
      if (summary.textContent !== text) summary.textContent = text;
      redraw(parts, [studio.name, studio.builtin, plan], () => (plan.fault ? [] : build(plan)));
      panel.note(fault ? "" : count(plan.buckets.length, "size"));
    }

    /** What was typed, imported or drawn a moment ago may be followed by more. */
    function soon() {
      window.clearTimeout(waiting);
      waiting = window.setTimeout(load, WAIT_MS);
    }

    panel.on_open(load);
    studio.on("rows", soon);
    studio.on("training", () => {
      const now = JSON.stringify(studio.training);
      if (now === seen) return;
      seen = now;
      soon();
    });
  });
})();
