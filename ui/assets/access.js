// Who can open this page, on the Settings tab: the logins, the link with its QR code, and ways to shut others out.
(() => {
  "use strict";
  const { h, redraw, call, act, poll, open_dialog, confirm_dialog, copy } = window.safelight;

  window.safelight.define("access", ({ element, server }) => {
    const card = h("section", { class: "sl-card" });
    element.replaceChildren(card);

    const button = (label, key, onclick, kind = "") => h("button", { type: "button", class: `sl-button ${kind}`, "data-key": key, onclick }, label);

    async function log_out() {
      try {
        await fetch("logout", { method: "POST", redirect: "manual" });
      } finally {
        window.location.assign("login");
      }
    }

    async function show_ways() {
      const answer = await act(server, "show_ways");
      if (!answer) return;
      const shown = answer.ways.map((way) =>
        h(
          "section",
          { class: "sl-way" },
          h("h3", {}, way.label),
          h("img", { src: way.code, alt: `QR code of the link: ${way.label}` }),
          h("p", { class: "sl-link" }, way.link),
          h("div", { class: "sl-actions" }, button("Copy the link", null, () => copy(way.link))),
        ),
      );
      const note = "One tap on a link logs in, without the password. Give it only to people who may control this machine.";
      open_dialog("Open on a phone or another machine", h("div", { class: "sl-ways" }, h("p", {}, note), shown));
    }

    async function end(login) {
      await act(server, "end_login", { login });
    }

    async function renew(password_stays) {
      const old = password_stays ? "The old link opens nothing any more" : "The old link and the old password open nothing any more";
      if (await confirm_dialog(`${old}, and everybody else is logged out. Go on?`, "Make new ones")) await act(server, "renew");
    }

    async function stop_sharing() {
      const question = "Close the share link? Whoever uses it is logged out, perhaps you too. It comes back only with a new start.";
      if (await confirm_dialog(question, "Stop sharing")) await act(server, "stop_sharing");
    }

    function row(login) {
      const which = `${login.place}, since ${login.began}`;
      const last = login.own
        ? button("Log out", "own", log_out)
        : h("button", { type: "button", class: "sl-button", "data-key": login.id, "aria-label": `Log out the login ${which}`, onclick: () => end(login.id) }, "Log out");
      return h("tr", {}, h("td", {}, login.place, login.own ? h("strong", {}, " (this one)") : null), h("td", {}, login.began), h("td", {}, login.used), h("td", {}, last));
    }

    function draw(state) {
      const parts = [h("h2", {}, "Who can open this page"), h("p", {}, state.text)];
      if (state.warning) parts.push(h("p", { class: "sl-message sl-busy" }, state.warning));
      if (!state.guarded) return parts;
      const head = ["Logged in", "Since", "Last used", ""].map((title) => h("th", { scope: "col" }, title || h("span", { class: "sl-hidden" }, "Action")));
      parts.push(
        h(
          "div",
          { class: "sl-actions" },
          state.others ? button("Show the link and its QR code", "ways", show_ways) : null,
          button(state.password_stays ? "New link" : "New link and password", "renew", () => renew(state.password_stays)),
          state.shared ? button("Stop sharing", "stop", stop_sharing, "sl-stop") : null,
        ),
        h("h3", {}, "Logins"),
        h("table", { class: "sl-table sl-logins" }, h("thead", {}, h("tr", {}, head)), h("tbody", {}, state.logins.map(row))),
        h("p", { class: "sl-muted" }, state.rules),
      );
      return parts;
    }

    poll(element, async () => {
      try {
        redraw(card, await call(server, "access_state"), draw);
      } catch (error) {
        if (!card.childElementCount) redraw(card, error.message, (text) => h("p", { class: "sl-message sl-bad" }, text));
      }
    });
  });
})();
