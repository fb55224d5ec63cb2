// The Settings tab: facts about this installation, and the looks and keys of this browser.
(() => {
  "use strict";
  const { h, redraw, call, theme, set_theme, show_keys, keys_off } = window.safelight;

  window.safelight.define("settings", ({ element, server }) => {
    const facts = h("div", {});
    const looks = [
      ["system", "As the system says"],
      ["light", "Light"],
      ["dark", "Dark"],
    ].map(([value, label]) =>
      h("label", { class: "sl-choice" }, h("input", { type: "radio", name: "theme", value, checked: theme() === value, onchange: () => set_theme(value) }), label),
    );
    const keys = h("input", { type: "checkbox", checked: !keys_off() });
    keys.addEventListener("change", () => window.localStorage.setItem("safelight-keys", keys.checked ? "on" : "off"));
    element.replaceChildren(
      facts,
      h("section", { class: "sl-card" }, h("h2", {}, "Looks"), h("fieldset", {}, h("legend", {}, "Theme"), looks)),
      h(
        "section",
        { class: "sl-card" },
        h("h2", {}, "Keys"),
        h("label", { class: "sl-choice" }, keys, "Single-letter keys"),
        h("button", { type: "button", class: "sl-button", onclick: show_keys }, "List of keys"),
      ),
    );

    const pairs = (rows) => h("dl", { class: "sl-facts" }, rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));

    const TONES = { on: "sl-good", partly: "sl-busy", off: "sl-bad", "not set": "sl-quiet" };

    const protections = (rows) =>
      h(
        "dl",
        { class: "sl-protections" },
        rows.map(({ name, state, text }) =>
          h("div", {}, h("dt", {}, name, " ", h("span", { class: `${TONES[state]}` }, state)), h("dd", {}, text)),
        ),
      );

    (async () => {
      try {
        const state = await call(server, "settings_state");
        redraw(facts, state, () => [
          h("section", { class: "sl-card", id: "protections" }, h("h2", {}, "What protects this installation"), protections(state.protections)),
          h(
            "section",
            { class: "sl-card" },
            h("h2", {}, "This machine"),
            h("p", {}, state.machine),
            h("p", {}, "Models, datasets and runs are kept in ", h("code", {}, state.workspace), "."),
          ),
          h("section", { class: "sl-card" }, h("h2", {}, "Versions"), pairs(state.versions)),
        ]);
      } catch (error) {
        redraw(facts, error.message, (text) => h("p", { class: "sl-message sl-bad" }, text));
      }
    })();
  });
})();
