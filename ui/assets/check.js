// The Train tab's check: how far it is, and what it found, with a way to each setting that a finding is about.
(() => {
  "use strict";
  const { h, redraw, poll, call, act } = window.safelight;
  const WORDS = { fault: "Fault", warning: "Warning", note: "Note", good: "Ok" };
  const TONES = { fault: "bad", warning: "busy", note: "quiet", good: "good" };
  const ORDER = ["fault", "warning", "note"];

  window.safelight.define("check", ({ element, server, watch, props }) => {
    const body = h("section", { "aria-label": "Check of this run", id: "check-result" });
    element.replaceChildren(body);
    let task = "";
    let over = true;

    function go_to(field) {
      const block = document.getElementById(field);
      if (!block) return;
      const fold = document.querySelector("#view-form .sl-fold");
      if (block.offsetParent === null && fold?.getAttribute("aria-expanded") === "false") fold.click();
      block.scrollIntoView({ block: "center" });
      block.querySelector("input, textarea, select, button")?.focus({ preventScroll: true });
    }

    function finding(one) {
      return h(
        "li",
        { class: "sl-finding", "data-level": one.level },
        h("span", { class: `sl-chip sl-${TONES[one.level]}` }, WORDS[one.level]),
        h(
          "div",
          { class: "sl-finding-middle" },
          h("p", {}, h("strong", {}, one.check), ": ", one.text),
          one.field && one.level !== "good"
            ? h("button", { type: "button", class: "sl-button", "aria-label": `Go to ${one.label}`, onclick: () => go_to(one.field) }, "Change it")
            : null,
        ),
      );
    }

    function report(result) {
      const bad = result.findings.filter((one) => one.level !== "good").sort((a, b) => ORDER.indexOf(a.level) - ORDER.indexOf(b.level));
      const fine = result.findings.filter((one) => one.level === "good");
      const rows = (result.estimate || []).map((row) => [
        h("dt", {}, row.name),
        h("dd", {}, row.text, row.parts ? h("span", { class: "sl-muted" }, ` ${row.parts}`) : null),
      ]);
      return [
        h("p", { class: `sl-message sl-${result.ok ? "good" : "bad"}`, role: "status" }, result.sentence),
        rows.length ? h("dl", { class: "sl-estimate" }, rows.flat()) : null,
        bad.length ? h("ul", { class: "sl-findings" }, bad.map(finding)) : null,
        h(
          "details",
          { class: "sl-checked" },
          h("summary", {}, fine.length === 1 ? "1 check is fine" : `${fine.length} checks are fine`),
          h("ul", { class: "sl-findings" }, fine.map(finding)),
        ),
      ];
    }

    function draw(state) {
      if (state.active)
        return [
          h("p", { class: "sl-message", role: "status" }, state.text || "Checking …"),
          h("progress", { max: "100", value: state.percent ? String(state.percent) : null, "aria-label": "Progress of the check" }),
          h("button", { type: "button", class: "sl-button", "data-key": "cancel", onclick: () => act(server, "check_cancel", { task }) }, "Cancel the check"),
        ];
      if (state.result) return report(state.result);
      return [h("p", { class: `sl-message sl-${state.state === "cancelled" ? "quiet" : "bad"}`, role: "status" }, state.message)];
    }

    async function look() {
      if (!task || over) return;
      try {
        const state = await call(server, "check_state", { task });
        over = !state.active;
        redraw(body, state, draw);
      } catch (error) {
        if (!error.told || error.ended) return; // it goes on without us; ask again
        over = true;
        redraw(body, error.message, (text) => [h("p", { class: "sl-message sl-bad", role: "alert" }, text)]);
      }
    }

    const soon = poll(element, look);
    function begin() {
      const value = props.value || {};
      if (!value.task || value.task === task) return;
      [task, over] = [value.task, false];
      soon();
    }
    watch("value", begin);
    begin();
  });
})();
