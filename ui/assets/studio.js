// What all parts of the Dataset tab share: the dataset that is open, its rows, the selection, panels and tasks.
//
//   studio.name .builtin .revision .rows .selection .shown   the open dataset; rows as ui/studio/rows.py makes them
//   studio.row(name)              the row of one picture
//   studio.scope()                names an operation applies to: the selection, else what the filter shows
//   studio.scope_text()           the same in words: "12 selected pictures", "all 48 pictures"
//   studio.on(event, work)        "dataset" (another one is open), "rows" (its contents changed), "selection", "shown",
//                                 "problems", "training", "tasks"; returns a function that ends it
//   studio.choose(name)           opens a dataset;  studio.reload() asks for the rows once more
//   studio.act(server, function, argument, {reload})
//                                 saves captions that are being typed, calls a Python function with {dataset, ...argument},
//                                 tells `text` of the answer, follows its `task`, asks for the rows again; null if it failed
//   studio.panel(element, {id, title, open, writes}) -> {body, note(text), open(), is_open(), on_open(work), element}
//                                 a panel of the tab with its button in the bar; `writes`: not for read-only datasets
//   studio.task(answer)           follows the task {task: id}: a card with progress, cancel and report. A promise of its end
//   studio.open_viewer(name)      the picture in full size;  studio.viewer_tool({id, title, start}) adds a tool to it
//   studio.complete(box)          autocomplete in a text box, once a script has set studio.completer = (box) => {}
//   studio.set_problems(found)    {picture: [sentence, ...]} of the quality report: shown, sorted and filtered by the grid
//   studio.training               settings of the Train form as it stands: {"dataset.resolution": 1024, "model.base": ...}
//   studio.save(name) .typed(row) .type(name, text)           a caption box of your own: type() at input, save() when left
(() => {
  "use strict";
  const { h, setText, redraw, poll, call, notify, remember } = window.safelight;

  const listeners = {};
  const tools = [];
  const savers = new Set();
  const followers = new Map();
  const panels = [];
  let desk = null;
  let desk_ready;
  const desk_here = new Promise((resolve) => (desk_ready = resolve));
  let look = () => {};
  let by_name = new Map();
  let asked = 0;
  let loaded_at = 0;

  const studio = {
    name: "",
    builtin: false,
    revision: -1,
    state: { datasets: [], tasks: [], undo: "", redo: "" },
    rows: [],
    shown: [],
    selection: new Set(),
    problems: new Map(),
    training: {},
    completer: null,
    tools,
    panels,
  };

  // ---- events ---------------------------------------------------------------------------------------------------

  studio.on = (event, work) => {
    (listeners[event] ||= new Set()).add(work);
    return () => listeners[event].delete(work);
  };

  studio.emit = (event, detail) => {
    for (const work of listeners[event] || []) work(detail);
  };

  studio.row = (name) => by_name.get(name);
  studio.scope = () => (studio.selection.size ? studio.rows.map((row) => row.name).filter((name) => studio.selection.has(name)) : [...studio.shown]);

  const pictures = (count) => `${count.toLocaleString("en")} ${count === 1 ? "picture" : "pictures"}`;
  studio.pictures = pictures;

  studio.scope_text = () => {
    if (studio.selection.size) return `${studio.selection.size.toLocaleString("en")} selected ${studio.selection.size === 1 ? "picture" : "pictures"}`;
    if (studio.shown.length === studio.rows.length) return `all ${pictures(studio.rows.length)}`;
    return `the ${studio.shown.length === 1 ? "picture" : pictures(studio.shown.length)} that the filter shows`;
  };

  studio.set_selection = (names) => {
    studio.selection = new Set(names);
    studio.emit("selection");
  };

  studio.set_problems = (found) => {
    studio.problems = new Map(Object.entries(found || {}));
    studio.emit("problems");
  };

  studio.max_tokens = () => Number(studio.training["dataset.max_token_length"]) || 75;

  studio.set_training = (values) => {
    if (JSON.stringify(values) === JSON.stringify(studio.training)) return;
    studio.training = values;
    studio.emit("training");
    count_anew();
  };

  let counted_for; // the model whose tokens the rows tell; the form may come later than they do, or change

  function count_anew() {
    if (studio.name && counted_for !== studio.training["model.base"]) load(studio.name);
  }

  // ---- the dataset ----------------------------------------------------------------------------------------------

  /** Called once by the tab's own view, which has the Python functions. */
  studio.attach = (element, server) => {
    desk = server;
    desk_ready();
    look = poll(element, watch_server);
  };

  let going_on = 0; // calls and loads: what a poll saw before them says nothing about after them

  async function meanwhile(work) {
    going_on += 1;
    try {
      return await work();
    } finally {
      going_on -= 1;
    }
  }

  studio.call = (name, argument = {}) =>
    meanwhile(async () => {
      await desk_here;
      return call(desk, name, { dataset: studio.name, ...argument }, 60);
    });

  const failed = (error) => notify(error.told ? error.message : "Safelight does not answer. Is it still running?", "bad");

  const load = (name) => meanwhile(() => load_rows(name));

  async function load_rows(name) {
    const number = (asked += 1);
    await desk_here;
    const base = studio.training["model.base"];
    let answer;
    try {
      answer = await call(desk, "studio_rows", { dataset: name, training: studio.training }, 60);
    } catch (error) {
      if (number === asked) failed(error);
      return;
    }
    if (number !== asked) return; // another dataset was asked for meanwhile
    const changed = answer.name !== studio.name;
    for (const row of answer.rows) {
      const old = changed ? null : by_name.get(row.name);
      if (old && old.url === row.url) Object.assign(row, { bucket: old.bucket, enlarged: old.enlarged }); // until they are asked for anew
    }
    loaded_at = Date.now();
    counted_for = base;
    Object.assign(studio, { name: answer.name, builtin: answer.builtin, revision: answer.revision, rows: answer.rows });
    by_name = new Map(studio.rows.map((row) => [row.name, row]));
    if (changed) {
      studio.selection = new Set();
      studio.problems = new Map();
      remember({ dataset: studio.name });
    } else studio.selection = new Set([...studio.selection].filter((one) => by_name.has(one)));
    if (changed) studio.emit("dataset");
    studio.emit("rows");
    studio.emit("selection");
    look();
    count_anew();
  }

  studio.choose = async (name) => {
    await studio.flush();
    if (name !== studio.name) await load(name);
  };
  studio.reload = () => load(studio.name);

  // ---- what happens on the server --------------------------------------------------------------------------------

  const BUSY_MS = 3000; // while a task writes, the rows are asked for no more often than this

  async function watch_server() {
    const name = studio.name;
    const before = going_on;
    if (!name) return; // the first rows are on their way
    let state;
    try {
      state = await call(desk, "studio_look", { dataset: name });
    } catch {
      return; // the strip says so when the server is away
    }
    studio.state = state;
    studio.emit("state");
    for (const task of state.tasks) if (!task.active && followers.has(task.id)) finish(task);
    if (before || going_on || name !== studio.name) return;
    const busy = state.tasks.some((task) => task.active);
    const stale = state.name === name && name === studio.name && state.revision !== studio.revision;
    if ((stale && (!busy || Date.now() - loaded_at > BUSY_MS)) || state.name !== name) await load(name);
  }

  studio.look = () => look();

  /** What was saved of one picture goes into its row; all rows are asked for again only if something else changed too. */
  studio.took = (name, values, { before_revision, revision } = {}) => {
    const row = studio.row(name); // asked for now: all rows may have been read anew since
    if (row) Object.assign(row, values, { stamp: (row.stamp || 0) + 1 });
    if (revision !== undefined && before_revision === studio.revision) studio.revision = revision;
    studio.emit("row", name);
    look();
  };

  // ---- captions that are being typed ------------------------------------------------------------------------------

  /** `save` is called before anything reads the captions; it returns a promise of their being saved. */
  studio.before_acting = (save) => savers.add(save);
  studio.flush = () => Promise.all([...savers].map((save) => save()));

  studio.act = async (server, name, argument = {}, { reload = true } = {}) => {
    await studio.flush();
    try {
      const answer = await meanwhile(() => call(server || desk, name, { dataset: studio.name, ...argument }, 60));
      if (answer.text) notify(answer.text);
      if (answer.task) studio.task(answer);
      document.dispatchEvent(new CustomEvent("safelight:look"));
      if (answer.select) await load(answer.select);
      else if (reload && !answer.task) await load(studio.name);
      return answer;
    } catch (error) {
      failed(error);
      return null;
    }
  };

  // ---- panels -----------------------------------------------------------------------------------------------------

  studio.panel = (element, { id, title, open = false, writes = false }) => {
    const opened = new Set();
    const noted = h("span", { class: "sl-panel-note" });
    const heading = h("h3", { id: `studio-title-${id}`, tabindex: "-1" }, title);
    const body = h("div", { class: "sl-panel-body" });
    const close = h("button", { type: "button", class: "sl-button sl-plain", "aria-label": `Close ${title}`, onclick: () => show(false, true) }, "Close");
    const section = h(
      "section",
      { class: "sl-panel", id: `studio-${id}`, "aria-labelledby": heading.id, hidden: true },
      h("div", { class: "sl-panel-head" }, heading, close),
      body,
    );
    const button = h("button", { type: "button", class: "sl-panel-button", id: `studio-open-${id}`, "aria-expanded": "false", "aria-controls": section.id }, title, noted);

    function show(wanted, by_hand = false) {
      if (section.hidden === !wanted) return;
      if (wanted) for (const other of panels) if (other.id !== id) other.show(false); // one screen, one question
      section.hidden = !wanted;
      button.setAttribute("aria-expanded", String(wanted));
      if (!wanted && by_hand) button.focus();
      if (wanted) for (const work of opened) work();
    }

    button.addEventListener("click", () => show(section.hidden));
    section.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !event.defaultPrevented) show(false, true);
    });
    element.replaceChildren(section);
    const old = panels.findIndex((one) => one.id === id);
    if (old >= 0) panels.splice(old, 1);
    const panel = {
      id,
      writes,
      element,
      button,
      body,
      show,
      note: (text) => setText(noted, text || ""),
      open: () => {
        show(true);
        heading.focus();
        section.scrollIntoView({ block: "nearest" });
      },
      is_open: () => !section.hidden,
      on_open: (work) => {
        opened.add(work);
        if (!section.hidden) work();
      },
    };
    panels.push(panel);
    // the bar's buttons stand in the order of the panels on the page, whichever script came first
    panels.sort((one, other) => (one.element.compareDocumentPosition(other.element) & Node.DOCUMENT_POSITION_FOLLOWING ? -1 : 1));
    studio.emit("panels");
    if (open) show(true);
    return panel;
  };

  studio.open_panel = (id) => panels.find((panel) => panel.id === id)?.open();

  // ---- tasks ------------------------------------------------------------------------------------------------------

  studio.task = ({ task }) =>
    new Promise((done) => {
      followers.set(task, [...(followers.get(task) || []), done]);
      look();
      document.getElementById("studio-tasks")?.scrollIntoView({ block: "nearest" });
    });

  async function finish(task) {
    const waiting = followers.get(task.id);
    followers.delete(task.id);
    if (studio.state.tasks.some((one) => one.id === task.id && one.dataset === studio.name)) await load(studio.name);
    for (const done of waiting) done(task);
  }

  const TONES = { waiting: "quiet", running: "busy", done: "good", failed: "bad", cancelled: "quiet" };
  const WORDS = { waiting: "Waiting", running: "Running", done: "Done", failed: "Failed", cancelled: "Cancelled" };

  function task_card(task) {
    const line = [task.total ? `${task.done.toLocaleString("en")} of ${task.total.toLocaleString("en")}` : "", task.text, task.left].filter(Boolean).join(" · ");
    const name = task.dataset && task.dataset !== studio.name ? `${task.title} (${task.dataset})` : task.title;
    const button = (label, action, kind = "") =>
      h(
        "button",
        { type: "button", class: `sl-button ${kind}`, "data-key": `${action}-${task.id}`, "aria-label": `${label} ${task.title}`, onclick: () => act_on(task, action) },
        label,
      );
    return h(
      "li",
      { class: "sl-task", "data-task": task.kind, "data-state": task.state },
      h("span", { class: `sl-chip sl-${TONES[task.state]}` }, WORDS[task.state]),
      h("div", { class: "sl-task-middle" }, h("strong", {}, name), " ", h("span", { class: "sl-line" }, task.active ? line : task.message),
        task.active ? h("progress", { max: String(task.total || 1), value: task.total ? String(task.done) : null, "aria-label": `Progress of ${task.title}` }) : null,
        task.skipped ? report(task) : null,
      ),
      task.active ? button("Cancel", "cancel") : button("Dismiss", "dismiss"),
    );
  }

  const open_reports = new Map();

  /** What was left out and why; asked for only when somebody wants to read it. */
  function report(task) {
    const list = h("ul", { class: "sl-skipped" });
    const details = h("details", { open: open_reports.has(task.id) }, h("summary", {}, `${task.skipped.toLocaleString("en")} left out`), list);
    const show = (entries) => list.replaceChildren(...entries.map(([name, why]) => h("li", {}, h("strong", {}, name), ": ", why)));
    if (open_reports.has(task.id)) show(open_reports.get(task.id));
    details.addEventListener("toggle", async () => {
      if (!details.open) return void open_reports.delete(task.id);
      if (!open_reports.has(task.id)) open_reports.set(task.id, []);
      try {
        const { entries } = await studio.call("task_report", { id: task.id });
        open_reports.set(task.id, entries);
        show(entries);
      } catch (error) {
        failed(error);
      }
    });
    return details;
  }

  async function act_on(task, action) {
    try {
      await studio.call("task_action", { id: task.id, action });
    } catch (error) {
      failed(error);
    }
    look();
  }

  studio.draw_tasks = (list) => {
    const tasks = studio.state.tasks.filter((task) => task.active || task.dataset === studio.name || !task.dataset);
    redraw(list, [studio.name, tasks], () => tasks.map(task_card));
  };

  // ---- the viewer's tools and autocomplete -------------------------------------------------------------------------

  /** `start(viewer)` is called when the tool is chosen and returns a function that ends it. See studio_viewer.js. */
  studio.viewer_tool = (tool) => tools.push(tool);
  studio.complete = (box) => studio.completer?.(box);

  studio.load = load;
  window.safelight.studio = studio;
})();
