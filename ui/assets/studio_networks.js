// A network that works on pictures (tagger, captioner, masks) with what can be done about it: fetch, watch, cancel, go on,
// remove. Shared by the panels of the Dataset tab that use one.
(() => {
  "use strict";
  const { h, act, confirm_dialog, studio } = window.safelight;
  const button = (label, key, name, work, look = "") => h("button", { type: "button", class: `sl-button ${look}`, "data-key": key, "aria-label": name, onclick: work }, label);

  async function fetch_it(one, server) {
    const answer = await act(server, "fetch_network", { name: one.name });
    if (!answer?.confirm) return;
    if (!(await confirm_dialog(`${answer.confirm.join(". ")}. Fetch ${one.title} all the same?`, "Fetch"))) return;
    await act(server, "fetch_network", { name: one.name, confirmed: true });
  }

  async function do_download(one, server, action) {
    if (action === "remove" && !(await confirm_dialog(`Delete what has come of ${one.title}?`, "Delete"))) return;
    await act(server, "network_action", { id: one.download.id, action });
  }

  async function remove(one, server) {
    if (!(await confirm_dialog(`Remove ${one.title} from this machine? It can be fetched again.`, "Remove"))) return;
    await act(server, "remove_network", { name: one.name });
  }

  /** `look` is called after something was done. */
  studio.network_card = (one, server, look) => {
    const facts = [one.size, one.licence, one.source].filter(Boolean).join(" · ");
    const state = one.download;
    const then = (work) => async () => {
      await work();
      look();
    };
    return h(
      "div",
      { class: "sl-tagger", "data-tagger": one.name, "data-here": one.here ? "yes" : "no" },
      h("p", {}, h("strong", {}, one.title), ": ", one.why, facts ? h("span", { class: "sl-muted" }, ` ${facts}`) : null),
      state ? h("p", { class: "sl-line" }, h("span", { class: `sl-chip sl-${state.tone}` }, state.word), " ", state.line) : null,
      state?.active ? h("progress", { max: "100", value: String(state.percent), "aria-label": `Download of ${one.title}` }) : null,
      state?.message ? h("p", { class: "sl-message sl-bad" }, state.message) : null,
      h(
        "div",
        { class: "sl-actions" },
        state ? state.actions.map(([action, label]) => button(label, `${action}-${one.name}`, `${label} ${one.title}`, then(() => do_download(one, server, action)))) : null,
        !one.here && !state ? button(`Download${one.size ? ` (${one.size})` : ""}`, `fetch-${one.name}`, `Download ${one.title}`, then(() => fetch_it(one, server))) : null,
        one.here && !one.own ? button("Remove", `drop-${one.name}`, `Remove ${one.title}`, then(() => remove(one, server)), "sl-plain") : null,
      ),
    );
  };
})();
