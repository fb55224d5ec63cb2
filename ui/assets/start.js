// The Start tab: three steps, the last run, and the sample set.
(() => {
  "use strict";
  const { h, redraw, poll, call, act, open_tab, remember, notify } = window.safelight;

  window.safelight.define("start", ({ element, server, trigger }) => {
    const last = h("div", {});
    const steps = h("ol", { class: "sl-steps" });
    const machine = h("p", { class: "sl-muted" });
    const demo = h("button", { type: "button", class: "sl-button sl-primary", id: "try-demo" }, "Try with the sample set (about 2 minutes)");
    const busy = h("span", { class: "sl-muted" });
    demo.addEventListener("click", () => {
      demo.disabled = true; // a second click must not queue a second run
      window.setTimeout(() => (demo.disabled = false), 4000);
      trigger("demo");
    });
    element.replaceChildren(
      last,
      h("h2", {}, "Teach an image model a person, a thing or a style"),
      steps,
      h(
        "div",
        { class: "sl-card sl-try" },
        h("div", {}, h("h3", {}, "New here?"), h("p", {}, "The sample set trains a small LoRA on the built-in model: 30 ink drawings, a whole run, no downloads.")),
        h("div", { class: "sl-actions" }, demo, busy),
      ),
      machine,
      h("p", { class: "sl-muted" }, "You can close this page while training. Come back with the same link."),
    );

    const step = (data, number) =>
      h(
        "li",
        { class: `sl-card ${data.done ? "sl-done" : ""}` },
        h("span", { class: "sl-number", "aria-hidden": "true" }, data.done ? "✓" : String(number + 1)),
        h(
          "div",
          {},
          h("h3", {}, data.title),
          h("p", {}, data.what),
          h("p", { class: "sl-muted" }, data.state),
        ),
        h("button", { type: "button", class: "sl-button", "data-key": data.tab, onclick: () => open_tab(data.tab) }, data.button),
      );

    function open_run(run) {
      remember({ run });
      document.dispatchEvent(new CustomEvent("safelight:run", { detail: run }));
      open_tab("runs");
    }

    async function go_on(run) {
      if (await act(server, "start_action", { run, action: "resume" })) open_run(run);
    }

    function last_run(run) {
      const resume = run.actions.find(([action]) => action === "resume" && !run.active);
      return h(
        "section",
        { class: "sl-card sl-last", "aria-label": run.active ? "Current run" : "Last run" },
        h(
          "div",
          {},
          h("h2", {}, run.active ? "Current run" : "Last run"),
          h("p", {}, h("strong", {}, run.id), " ", h("span", { class: `sl-chip sl-${run.tone}` }, run.word), " ", run.headline),
        ),
        h(
          "div",
          { class: "sl-actions" },
          resume ? h("button", { type: "button", class: "sl-button sl-primary", "data-key": "resume", onclick: () => go_on(run.id) }, resume[1]) : null,
          h("button", { type: "button", class: "sl-button", "data-key": "open", onclick: () => open_run(run.id) }, run.active ? "Watch it" : "Open it"),
        ),
      );
    }

    let round = 0;
    const look = poll(element, async () => {
      round += 1;
      if (round % 3 !== 1) return;
      try {
        const state = await call(server, "start_state");
        redraw(last, state.last && [state.last.id, state.last.word, state.last.headline], () => (state.last ? last_run(state.last) : []));
        redraw(steps, state.steps, () => state.steps.map(step));
        machine.textContent = `This machine: ${state.machine}`;
        busy.textContent = state.busy ? "Another run is going on; this one will wait for it." : "";
      } catch (error) {
        if (error.told) notify(error.message, "bad");
      }
    });
    document.addEventListener("safelight:state", () => {
      round = 0;
      look();
    });
  });
})();
