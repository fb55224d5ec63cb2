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

    const WORDS = { on: ["on", "sl-good"], partly: ["partly", "sl-busy"], off: ["off", "sl-bad"] };

    function protection({ name, state, text }) {
      const [word, tone] = WORDS[state];
      return h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, h("span", { class: tone }, word)), h("td", {}, text));
    }

    function protections(rows) {
      const head = ["Protection", "State", "What it does here"].map((name) => h("th", { scope: "col" }, name));
      return h("div", { class: "sl-scroll" }, h("table", { class: "sl-table" }, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows.map(protection))));
    }

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
