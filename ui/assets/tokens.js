// The tokens part of the Settings tab. A typed token leaves its field before it is sent, and is kept nowhere here.
(() => {
  "use strict";
  const { h, redraw, call, notify, confirm_dialog } = window.safelight;
  const SECONDS = 90; // a hub may take its time, and is asked again when it is busy

  window.safelight.define("tokens", ({ element, server }) => {
    const cards = h("div", {});
    element.replaceChildren(cards);

    async function look() {
      try {
        redraw(cards, await call(server, "tokens_state"), draw);
      } catch (error) {
        redraw(cards, error.message, (text) => h("p", { class: "sl-message sl-bad" }, text));
      }
    }

    async function then_look(name, argument) {
      try {
        notify((await call(server, name, argument, SECONDS)).text);
      } catch (error) {
        notify(error.message, "bad");
      }
      await look();
    }

    async function forget(service) {
      if (await confirm_dialog(`Forget the ${service.name} token?`, "Forget")) await then_look("forget_token", { service: service.name });
    }

    function entry(service, has_keyring) {
      const id = `token-${service.name.replace(" ", "-").toLowerCase()}`;
      const field = h("input", { type: "password", id, class: "sl-field", autocomplete: "off", spellcheck: "false", "data-key": id });
      const keep = h("input", { type: "checkbox" });
      const save = (event) => {
        event.preventDefault();
        const token = field.value.trim();
        field.value = "";
        if (token) then_look("save_token", { service: service.name, token, keep: keep.checked });
      };
      const label = `${service.source ? "Another" : "Your"} ${service.name} token`;
      const button = (text, attributes) =>
        h("button", { type: "button", class: "sl-button", "aria-label": `${text} ${service.name} token`, "data-key": `${text} ${service.name}`, ...attributes }, text);
      return h(
        "form",
        { onsubmit: save },
        h("label", { for: id }, label),
        field,
        has_keyring ? h("label", { class: "sl-choice" }, keep, "Keep it in this machine's keyring") : null,
        h(
          "div",
          { class: "sl-actions" },
          button("Save", { type: "submit" }),
          service.source ? button("Check", { onclick: () => then_look("check_token", { service: service.name }) }) : null,
          service.source ? button("Forget", { class: "sl-button sl-stop", onclick: () => forget(service) }) : null,
        ),
      );
    }

    function card(service, has_keyring) {
      const whose = service.user ? `${service.user}, ${service.role}` : "not asked yet";
      const facts = service.source
        ? [h("dt", {}, "Comes from"), h("dd", {}, service.source), h("dt", {}, "Belongs to"), h("dd", {}, whose)]
        : [h("dt", {}, "Token"), h("dd", {}, "none")];
      return [
        h("h3", {}, service.name),
        h("p", {}, service.needed, " Made at ", h("code", {}, service.link), "."),
        h("dl", { class: "sl-facts" }, facts),
        service.warning ? h("p", { class: "sl-message sl-bad" }, service.warning) : null,
        entry(service, has_keyring),
      ];
    }

    const draw = (state) =>
      h(
        "section",
        { class: "sl-card" },
        h("h2", {}, "Tokens"),
        h("p", {}, "Tokens are never shown, logged or written to a file of Safelight. A typed one is forgotten when Safelight ends."),
        state.note ? h("p", { class: "sl-message" }, state.note) : null,
        state.services.flatMap((service) => card(service, state.keyring)),
      );

    look();
  });
})();
