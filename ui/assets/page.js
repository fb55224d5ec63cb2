// Shared by every script of the page: building nodes, polling, dialogs, tabs, keys, theme.
// Texts of captions, prompts, names and logs come from outside: they are only ever set as text, never as HTML.
(() => {
  "use strict";

  const views = {};
  const phone = window.matchMedia("(max-width: 600px)");

  /** Builds an element. Strings among the children become text nodes. */
  function h(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value === true) node.setAttribute(name, "");
      else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
    }
    node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
    return node;
  }

  function setText(node, text) {
    if (node.textContent !== text) node.textContent = text;
  }

  const drawn = new WeakMap();

  /** Rebuilds a node's children, but only when their data changed; keeps the keyboard focus by `data-key`. */
  function redraw(node, data, build) {
    const key = JSON.stringify(data);
    if (drawn.get(node) === key) return;
    drawn.set(node, key);
    const focused = node.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
    node.replaceChildren(...[build(data)].flat().filter(Boolean));
    if (focused) node.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  }

  /** Runs `work` every second (every two on a phone) while its element can be seen; never twice at once. */
  function poll(element, work, { hidden_too = false } = {}) {
    let busy = false;
    let skip = false;
    async function tick(forced) {
      if (!element.isConnected) return window.clearInterval(timer);
      skip = phone.matches && !skip;
      const unseen = document.hidden || (!hidden_too && element.offsetParent === null);
      if (busy || unseen || (skip && !forced)) return;
      busy = true;
      try {
        await work();
      } finally {
        busy = false;
      }
    }
    const timer = window.setInterval(() => tick(false), 1000);
    document.addEventListener("visibilitychange", () => tick(true));
    document.addEventListener("safelight:look", () => tick(true));
    tick(true);
    return () => tick(true);
  }

  // ---- the login ----------------------------------------------------------------------------------------------

  const ENDED = "Your login has ended: it was ended in the settings, or it was too old. A run goes on without this page.";
  let banner = null;

  async function logged_out() {
    try {
      return (await fetch("session", { cache: "no-store" })).status === 401;
    } catch {
      return false; // the server is away, which is another matter
    }
  }

  /** From here on nothing is asked any more, until somebody has logged in again, perhaps on another tab. */
  function show_ended() {
    if (banner) return;
    banner = h("div", { id: "sl-ended", role: "alert" }, h("p", {}, ENDED), h("a", { class: "sl-button", href: "login" }, "Log in again"));
    document.body.prepend(banner);
  }

  async function look_for_login() {
    if (!banner || document.hidden || (await logged_out())) return;
    banner?.remove();
    banner = null;
    document.dispatchEvent(new CustomEvent("safelight:look"));
  }

  const ended_error = () => Object.assign(new Error(ENDED), { told: true, ended: true });

  /** Calls a Python function of the page. Throws an Error with a text for people. */
  async function call(server, name, argument = null, seconds = 20) {
    if (banner) throw ended_error();
    let clock;
    const late = new Promise((_, fail) => {
      clock = window.setTimeout(() => fail(new Error("Safelight does not answer.")), seconds * 1000);
    });
    try {
      const answer = await Promise.race([server[name](argument), late]);
      // Gradio swallows a failed request and answers with nothing.
      if (typeof answer !== "object" || answer === null) {
        if (await logged_out()) {
          show_ended();
          throw ended_error();
        }
        throw new Error("Safelight does not answer.");
      }
      if (answer.error) throw Object.assign(new Error(answer.error), { told: true });
      return answer;
    } finally {
      window.clearTimeout(clock);
    }
  }

  /** A call that the user asked for: its outcome is told, whatever it is. */
  async function act(server, name, argument) {
    try {
      const answer = await call(server, name, argument);
      if (answer.text) notify(answer.text);
      document.dispatchEvent(new CustomEvent("safelight:look"));
      return answer;
    } catch (error) {
      notify(error.told ? error.message : "Safelight does not answer. Is it still running?", "bad");
      return null;
    }
  }

  /** Shows a short message in a corner; errors stay until they are closed. */
  function notify(text, tone = "good") {
    let region = document.getElementById("sl-notices");
    if (!region) {
      region = h("div", { id: "sl-notices", role: "region", "aria-label": "Messages" });
      // what lies at the end of the page can be scrolled from under it
      new ResizeObserver(() => (document.body.style.paddingBottom = region.children.length ? `${region.offsetHeight + 32}px` : "")).observe(region);
    }
    const dialog = [...document.querySelectorAll("dialog[open]")].at(-1); // what is not in it can't be clicked while it is open
    (dialog || document.body).append(region);
    dialog?.addEventListener("close", () => document.body.append(region), { once: true });
    const notice = h("div", { class: `sl-notice sl-${tone}`, role: tone === "bad" ? "alert" : "status" }, h("p", {}, text));
    notice.append(h("button", { type: "button", class: "sl-button", onclick: () => notice.remove() }, "Close"));
    region.append(notice);
    if (tone !== "bad") window.setTimeout(() => notice.remove(), 6000);
  }

  /** A modal dialog with a heading; returns the <dialog>, removed when it closes. The browser gives the focus back. */
  function open_dialog(heading, content, attributes = {}) {
    const close = h("button", { type: "button", class: "sl-button", onclick: () => dialog.close() }, "Close");
    const title = h("h2", { id: "sl-dialog-title" }, heading);
    const dialog = h(
      "dialog",
      { class: "sl-dialog", "aria-labelledby": "sl-dialog-title", ...attributes },
      h("div", { class: "sl-dialog-head" }, title, close),
      content,
    );
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
    return dialog;
  }

  /** Asks before something that can't be undone. */
  function confirm_dialog(question, yes) {
    return new Promise((decide) => {
      const title = h("h2", { id: "sl-confirm-title" }, question);
      const dialog = h("dialog", { class: "sl-dialog sl-small", role: "alertdialog", "aria-labelledby": "sl-confirm-title" }, title);
      const done = (answer) => {
        decide(answer);
        dialog.close();
      };
      dialog.append(
        h(
          "div",
          { class: "sl-actions" },
          h("button", { type: "button", class: "sl-button", autofocus: true, onclick: () => done(false) }, "Cancel"),
          h("button", { type: "button", class: "sl-button sl-stop", onclick: () => done(true) }, yes),
        ),
      );
      dialog.addEventListener("close", () => {
        decide(false);
        dialog.remove();
      });
      document.body.append(dialog);
      dialog.showModal();
    });
  }

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // no clipboard on plain http from another machine: select the text of a field and let the browser copy
      const field = h("textarea", { "aria-label": "Text to copy", class: "sl-hidden" });
      field.value = text;
      (document.querySelector("dialog[open]") || document.body).append(field);
      field.select();
      document.execCommand("copy");
      field.remove();
    }
    notify("Copied.");
  }

  function save_as(name, text) {
    const link = h("a", { href: URL.createObjectURL(new Blob([text], { type: "text/plain" })), download: name });
    link.click();
    URL.revokeObjectURL(link.href);
  }

  // ---- tabs -------------------------------------------------------------------------------------------------

  const tab_buttons = () => [...document.querySelectorAll("#tabs > .tab-wrapper [role=tab][data-tab-id]")];

  function open_tab(id) {
    tab_buttons().find((button) => button.dataset.tabId === id)?.click();
  }

  function current_tab() {
    return tab_buttons().find((button) => button.getAttribute("aria-selected") === "true")?.dataset.tabId;
  }

  /** Writes the tab and the run into the address, so that a reload or a sent link opens the same thing. */
  function remember(changes) {
    const address = new URL(window.location.href);
    for (const [name, value] of Object.entries(changes)) {
      if (value) address.searchParams.set(name, value);
      else address.searchParams.delete(name);
    }
    window.history.replaceState(null, "", address);
  }

  const asked_tab = new URL(window.location.href).searchParams.get("tab");
  let last_tab = null;

  /** Arrow keys, one tab stop, and panels that belong to their tabs: what the tab list lacks by itself. */
  function tidy_tabs() {
    for (const button of tab_buttons()) {
      const selected = button.getAttribute("aria-selected") === "true";
      const panel = document.getElementById(`panel-${button.dataset.tabId}`);
      if (button.tabIndex !== (selected ? 0 : -1)) button.tabIndex = selected ? 0 : -1;
      if (!button.id) button.id = `tab-${button.dataset.tabId}`;
      if (!panel || !selected) {
        if (button.hasAttribute("aria-controls")) button.removeAttribute("aria-controls");
      } else if (button.getAttribute("aria-controls") !== panel.id) button.setAttribute("aria-controls", panel.id);
      if (panel && !panel.hasAttribute("aria-labelledby")) panel.setAttribute("aria-labelledby", button.id);
    }
    const open = current_tab();
    if (!open) return;
    if (last_tab === null && asked_tab && asked_tab !== open) open_tab(asked_tab);
    else if (last_tab !== null && last_tab !== open) remember({ tab: open });
    last_tab = open;
  }

  function tab_key(event) {
    const buttons = tab_buttons();
    const at = buttons.indexOf(event.target.closest("[role=tab]"));
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    const next = buttons[(to + buttons.length) % buttons.length];
    next.click();
    next.focus();
  }

  // ---- keys -------------------------------------------------------------------------------------------------

  const KEYS = [
    ["1 … 7", "open a tab"],
    ["/", "find on this tab"],
    ["g then r", "the current run"],
    ["arrow keys, Home, End", "move between tabs, steps and prompts"],
    ["Ctrl + Enter", "start training (on the Train tab)"],
    ["Dataset: arrows, Home, End", "move over the pictures; with Shift they are selected"],
    ["Space, e, j", "look at a picture; edit its caption; the next one without a caption"],
    ["Enter, Ctrl + ↑ ↓", "in a caption: save it and go on to the next or the one before"],
    ["x, Ctrl + a, Delete", "select a picture; select all that are shown; remove (asks)"],
    ["Ctrl + z, Ctrl + y", "undo and redo changes of the dataset"],
    ["+ − 0, Shift + arrows", "in the large view: zoom the crop, back to the middle, move it"],
    ["Esc", "close a dialog"],
    ["?", "this list"],
  ];
  const keys_off = () => window.localStorage.getItem("safelight-keys") === "off";
  let went = 0;

  function show_keys() {
    const rows = KEYS.map(([keys, what]) => h("tr", {}, h("th", { scope: "row" }, keys), h("td", {}, what)));
    open_dialog("Keys", h("table", { class: "sl-table" }, h("tbody", {}, rows)));
  }

  function page_key(event) {
    const typing = event.target.closest?.("input, textarea, select, [contenteditable=true]");
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && current_tab() === "train") {
      document.getElementById("start-training")?.click();
      return;
    }
    if (typing || event.ctrlKey || event.metaKey || event.altKey || keys_off() || document.querySelector("dialog[open]")) return;
    const button = tab_buttons()[Number(event.key) - 1];
    if (button) button.click();
    else if (event.key === "?") show_keys();
    else if (event.key === "g") went = Date.now();
    else if (event.key === "r" && Date.now() - went < 1500) open_tab("runs");
    else if (event.key === "/") {
      const panel = document.getElementById(`panel-${current_tab()}`);
      const fields = [...(panel?.querySelectorAll("input[type=search]") || [])].filter((one) => one.offsetParent);
      const field = fields.find((one) => "main" in one.dataset) || fields[0];
      if (!field) return;
      event.preventDefault();
      field.focus();
    }
  }

  // ---- theme ------------------------------------------------------------------------------------------------

  const theme = () => window.localStorage.getItem("safelight-theme") || "system";

  function apply_theme() {
    const dark = theme() === "dark" || (theme() === "system" && window.matchMedia("(prefers-color-scheme: dark)").matches);
    const body = document.body;
    if (body && body.classList.contains("dark") !== dark) body.classList.toggle("dark", dark);
  }

  function set_theme(choice) {
    window.localStorage.setItem("safelight-theme", choice);
    apply_theme();
  }

  // ---- what is wrong with a form field: told to screen readers, and the first one gets the focus ------------------

  let told = 0;

  function tell_faults() {
    const faults = [...document.querySelectorAll("#panel-train .validation-error:not(input):not(textarea)")];
    for (const fault of faults) {
      const block = fault.closest(".block");
      const field = block?.querySelector("input, textarea");
      if (!field || field.getAttribute("aria-invalid") === "true") continue;
      fault.id ||= `fault-${block.id}`;
      field.setAttribute("aria-invalid", "true");
      field.setAttribute("aria-describedby", fault.id);
    }
    for (const field of document.querySelectorAll("#panel-train [aria-invalid=true]")) {
      if (field.closest(".block")?.querySelector(".validation-error:not(input):not(textarea)")) continue;
      field.removeAttribute("aria-invalid");
      field.removeAttribute("aria-describedby");
    }
    if (faults.length && !told) {
      document.dispatchEvent(new CustomEvent("safelight:faults"));
      faults[0].closest(".block")?.querySelector("input, textarea")?.focus();
    }
    told = faults.length;
  }

  // ---- start ------------------------------------------------------------------------------------------------

  let queued = false;

  function look_again() {
    if (queued) return;
    queued = true;
    window.requestAnimationFrame(() => {
      queued = false;
      apply_theme(); // Gradio sets its own once more after the first view is drawn
      tidy_tabs();
      tell_faults();
    });
  }

  document.addEventListener("DOMContentLoaded", apply_theme);
  document.addEventListener("visibilitychange", look_for_login);
  window.addEventListener("focus", look_for_login);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => window.setTimeout(apply_theme));
  document.addEventListener("keydown", page_key);
  document.addEventListener("keydown", tab_key);
  new MutationObserver(look_again).observe(document.documentElement, {
    childList: true,
    subtree: true,
    attributes: true,
    attributeFilter: ["aria-selected", "class"],
  });

  window.safelight = {
    h,
    setText,
    redraw,
    poll,
    call,
    act,
    notify,
    open_dialog,
    confirm_dialog,
    copy,
    save_as,
    open_tab,
    current_tab,
    remember,
    show_keys,
    keys_off,
    theme,
    set_theme,
    apply_theme,
    define: (name, view) => (views[name] = view),
    mount: (name, context) => views[name](context),
  };
})();
