// The status strip above the tabs: what runs, how far it is, what the machine does, and the two buttons that matter.
(() => {
  "use strict";
  const { h, setText, redraw, poll, call, act, open_tab, remember, apply_theme } = window.safelight;

  window.safelight.define("strip", ({ element, server, trigger }) => {
    apply_theme();
    const chip = h("span", { class: "sl-chip" });
    const name = h("a", { class: "sl-name", href: "?tab=runs" });
    const bar = h("progress", { max: "100", value: "0", "aria-label": "Progress of the run" });
    const line = h("span", { class: "sl-line" });
    const beside = h("span", { class: "sl-line sl-beside" });
    const machine = h("span", { class: "sl-machine" });
    const buttons = h("span", { class: "sl-actions" });
    const told = h("span", { class: "sl-hidden", role: "status" });
    const skip = h("a", { class: "sl-skip", href: "#tabs" }, "Skip to the content");
    const strip = h(
      "section",
      { class: "sl-strip", "aria-label": "Status" },
      h("span", { class: "sl-now" }, chip, name, bar, line, beside),
      buttons,
      told,
    );
    element.replaceChildren(skip, h("header", { class: "sl-header" }, h("h1", {}, "Safelight"), machine), strip);

    skip.addEventListener("click", (event) => {
      event.preventDefault();
      const panel = document.getElementById(`panel-${window.safelight.current_tab()}`);
      panel?.setAttribute("tabindex", "-1");
      panel?.focus();
    });
    name.addEventListener("click", (event) => {
      event.preventDefault();
      if (name.dataset.run) open_run(name.dataset.run);
      else open_tab(name.dataset.tab || "models");
    });

    function open_run(run) {
      remember({ run });
      document.dispatchEvent(new CustomEvent("safelight:run", { detail: run }));
      open_tab("runs");
    }

    let last = "";
    let last_word = null;
    let lost = 0;

    function show(state) {
      lost = 0;
      strip.classList.remove("sl-lost");
      chip.className = `sl-chip sl-${state.tone}`;
      setText(chip, state.word);
      setText(name, state.name);
      name.hidden = !state.name;
      name.dataset.run = state.run;
      name.dataset.tab = state.tab;
      bar.hidden = !state.active;
      bar.value = state.percent;
      setText(line, state.headline + (state.waiting ? ` · ${state.waiting} waiting` : ""));
      setText(beside, state.beside);
      beside.hidden = !state.beside;
      setText(machine, state.machine);
      redraw(buttons, [state.run, state.download, state.task, state.actions], ([run, download, task, actions]) =>
        actions.map(([action, label]) =>
          h(
            "button",
            {
              type: "button",
              class: `sl-button ${action === "stop" ? "sl-stop" : ""}`,
              "data-key": action,
              "aria-label": `${label} ${state.name}`,
              onclick: () => act(server, "strip_action", { run, download, task, action }),
            },
            label,
          ),
        ),
      );
      if (document.title !== state.title) document.title = state.title;
      // A screen reader hears a change of state and every tenth per cent, not every step.
      const spoken = `${state.word} ${state.name} ${state.active ? `${Math.floor(state.percent / 10) * 10}%` : state.headline}`;
      if (last && last !== spoken) setText(told, spoken);
      last = spoken;
      const word = `${state.word} ${state.run} ${state.waiting}`;
      if (last_word !== null && last_word !== word) {
        document.dispatchEvent(new CustomEvent("safelight:state", { detail: state }));
        trigger("state");
      }
      last_word = word;
    }

    function show_lost({ ended }) {
      lost += 1;
      if (lost < 2 && !ended) return;
      strip.classList.add("sl-lost");
      chip.className = "sl-chip sl-bad";
      setText(chip, ended ? "Logged out" : "Lost contact");
      const away = "A run goes on without this page. Trying again. If Safelight was closed, start it again.";
      setText(line, ended ? "A run goes on without this page." : away);
      if (!ended) setText(told, "Lost contact with Safelight"); // the login's end is told by its own message
      buttons.replaceChildren();
      redraw(buttons, null, () => []);
    }

    poll(
      element,
      async () => {
        try {
          show(await call(server, "strip_state", null, 8));
        } catch (error) {
          show_lost(error);
        }
      },
      { hidden_too: true },
    );
  });
})();
