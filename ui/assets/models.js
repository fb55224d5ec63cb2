// The Models tab: the table of what is here, and what came of the last import.
(() => {
  "use strict";
  const { h, redraw, poll, call, act, confirm_dialog } = window.safelight;

  window.safelight.define("models", ({ element, server, trigger, watch, props }) => {
    const table = h("div", { class: "sl-scroll" });
    const told = h("div", { role: "status" });
    element.replaceChildren(table, told);

    async function remove(model) {
      if (!(await confirm_dialog(`Remove ${model.name} from the library?`, "Remove"))) return;
      await act(server, "remove", { name: model.name });
      look();
    }

    const row = (model) =>
      h(
        "tr",
        {},
        h("th", { scope: "row" }, model.name),
        h("td", {}, model.family),
        h("td", {}, model.size),
        h("td", {}, model.prediction),
        h("td", {}, model.problem ? h("span", { class: "sl-bad" }, model.problem) : model.builtin ? "built in" : "checked"),
        h("td", {}, h("div", { class: "sl-actions" }, button(model, "Use", () => trigger("use", { name: model.name })), remover(model))),
      );

    function button(model, label, work, kind = "") {
      if (label === "Use" && model.problem) return null;
      const name = `${label} ${model.name}`;
      return h("button", { type: "button", class: `sl-button ${kind}`, "data-key": name, "aria-label": name, onclick: work }, label);
    }

    const remover = (model) => (model.builtin ? null : button(model, "Remove", () => remove(model), "sl-stop"));

    function draw(models) {
      const head = ["Name", "Family", "Size", "Predicts", "State", ""].map((name) => (name ? h("th", { scope: "col" }, name) : h("td", {})));
      return h("table", { class: "sl-table" }, h("thead", {}, h("tr", {}, head)), h("tbody", {}, models.map(row)));
    }

    let round = 0;
    const look = poll(element, async () => {
      round += 1;
      if (round % 5 !== 1) return;
      try {
        const state = await call(server, "models_state");
        redraw(table, state.models, draw);
      } catch (error) {
        redraw(table, error.message, (text) => h("p", { class: "sl-message sl-bad" }, text));
      }
    });
    watch("value", () => {
      const { text, tone } = props.value || {};
      told.replaceChildren(...(text ? [h("p", { class: `sl-message sl-${tone}` }, text)] : []));
      round = 0;
      look();
    });
  });
})();
