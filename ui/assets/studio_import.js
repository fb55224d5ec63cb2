// The Import panel of the Dataset tab: files, folders and archives from the browser, from this machine and by address.
// Files go to the server in pieces, three at a time, so that a broken connection costs a piece and the page stays quick.
(() => {
  "use strict";
  const { h, setText, call, notify, current_tab, studio } = window.safelight;
  const PIECE = 8 * 1024 * 1024;
  const SMALLEST_PIECE = 512 * 1024;
  const LANES = 3;
  const PAUSES = [1, 2, 4, 8, 15]; // seconds before another try
  const CAPTIONS = /\.(txt|caption|jsonl|csv|json)$/i;

  const many = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
  const megabytes = (bytes) => (bytes < 1e7 ? `${(bytes / 1e6).toFixed(1)} MB` : `${Math.round(bytes / 1e6).toLocaleString("en")} MB`);
  const wait = (seconds) => new Promise((done) => window.setTimeout(done, seconds * 1000));
  const ending = (name) => (/\.[^./]+$/.exec(name.toLowerCase()) || ["no ending"])[0];
  const left = (seconds) => (seconds < 90 ? `${Math.max(1, Math.round(seconds))} s left` : `${Math.round(seconds / 60)} min left`);

  // ---- what was dropped or chosen -------------------------------------------------------------------------------

  const read_some = (reader) => new Promise((done, fail) => reader.readEntries(done, fail));
  const file_of = (entry) => new Promise((done, fail) => entry.file(done, fail));

  async function walk(entry, found) {
    if (entry.name.startsWith(".")) return;
    if (entry.isFile) found.push({ name: entry.fullPath.replace(/^\/+/, ""), file: await file_of(entry) });
    else {
      const reader = entry.createReader();
      for (let some = await read_some(reader); some.length; some = await read_some(reader)) for (const one of some) await walk(one, found);
    }
  }

  /** Everything that was dropped, folders with all that is in them. The entries must be asked for before the first wait. */
  async function dropped_files(transfer) {
    const items = [...transfer.items].filter((item) => item.kind === "file");
    const entries = items.map((item) => [item.webkitGetAsEntry(), item.getAsFile()]);
    const found = [];
    for (const [entry, file] of entries) {
      if (entry) await walk(entry, found);
      else if (file) found.push({ name: file.name, file }); // a picture that was dragged out of another page
    }
    return found;
  }

  const picked_files = (input) => [...input.files].map((file) => ({ name: file.webkitRelativePath || file.name, file }));
  const is_hidden = (name) => name.split("/").some((part) => part.startsWith(".") || part === "__MACOSX");

  // ---- sending --------------------------------------------------------------------------------------------------

  class Refused extends Error {}

  /** Sends files to this server. `tell()` is called whenever `sent`, `done` or `failed` have changed. */
  class Sending {
    constructor(files, tell) {
      this.id = [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
      this.files = files;
      this.tell = tell;
      this.total = files.reduce((sum, { file }) => sum + file.size, 0);
      this.done = 0;
      this.failed = [];
      this.piece = PIECE;
      this.have = new Map();
      this.sent = 0;
      this.stopping = new AbortController();
      this.began = Date.now();
    }

    get seconds_left() {
      const passed = (Date.now() - this.began) / 1000;
      return passed > 2 && this.sent ? (passed * (this.total - this.sent)) / this.sent : null;
    }

    /** Sends what is not there yet. True when all of it is. */
    async run() {
      const again = this.failed.length > 0;
      const waiting = again ? this.failed.map(({ one }) => one) : [...this.files];
      if (!again) this.done = 0; // of what is there already, the server only says so
      this.failed = [];
      const lane = async () => {
        for (let one = waiting.shift(); one && !this.stopping.signal.aborted; one = waiting.shift()) {
          try {
            await this.send(one);
            this.done += 1;
          } catch (error) {
            if (this.stopping.signal.aborted) return;
            this.failed.push({ one, why: error.message });
            if (error.ended) throw error;
          }
          this.tell();
        }
      };
      await Promise.all(Array.from({ length: LANES }, lane));
      return !this.failed.length && !this.stopping.signal.aborted;
    }

    async send({ name, file }) {
      let at = this.have.get(name) || 0;
      do {
        const before = at;
        at = await this.piece_of(name, file, at);
        this.have.set(name, at);
        this.sent += at - before;
        this.tell();
      } while (at < file.size);
    }

    /** Sends one piece, again and again if need be. Returns how much of the file the server has. */
    async piece_of(name, file, at) {
      for (let attempt = 0; ; attempt += 1) {
        const query = new URLSearchParams({ upload_id: this.id, name, at: String(at), size: String(file.size) });
        let fault = "the connection broke, or the file can't be read any more";
        try {
          const answer = await fetch(`safelight/upload?${query}`, {
            method: "POST",
            body: file.slice(at, at + this.piece),
            headers: { "Content-Type": "application/octet-stream" },
            signal: this.stopping.signal,
          });
          const said = await answer.json().catch(() => ({}));
          if (answer.ok && Number.isInteger(said.have)) return said.have;
          if (answer.status === 401) throw Object.assign(new Refused("Your login has ended. Log in again, then send the rest."), { ended: true });
          fault = said.error || `the server answered ${answer.status}`;
          if (answer.status === 413 && !said.error && this.piece > SMALLEST_PIECE) {
            this.piece /= 2; // a proxy on the way takes no larger ones
            continue;
          }
          if (said.error && answer.status < 500 && answer.status !== 408 && answer.status !== 429) throw new Refused(fault);
        } catch (error) {
          if (error instanceof Refused || this.stopping.signal.aborted) throw error;
        }
        if (attempt >= PAUSES.length) throw new Refused(fault);
        await wait(PAUSES[attempt]);
      }
    }

    stop() {
      this.stopping.abort();
    }
  }

  studio.Sending = Sending;

  // ---- the panel ------------------------------------------------------------------------------------------------

  window.safelight.define("studio_import", ({ element, server }) => {
    const panel = studio.panel(element, { id: "import", title: "Import" });
    let suffixes = [];
    let chosen = [];
    let sending = null;
    let named_by_hand = false;

    const known = h("datalist", { id: "studio-import-names" });
    const into = h("input", { id: "studio-import-name", class: "sl-field", list: known.id, maxlength: "100", autocomplete: "off", spellcheck: "false" });
    const told = h("p", { class: "sl-message sl-bad", role: "alert" });
    const tell = (error, place = zone) => {
      place.before(told); // beside what was pressed: on a phone the top of the panel is out of sight
      setText(told, error ? (error.told === false ? "Safelight does not answer. Is it still running?" : error.message) : "");
      if (error) told.scrollIntoView({ block: "nearest" });
    };

    function name_it() {
      known.replaceChildren(...studio.state.datasets.filter((set) => !set.builtin).map((set) => h("option", { value: set.name })));
      if (!named_by_hand) into.value = studio.builtin ? "" : studio.name;
    }

    into.addEventListener("input", () => {
      named_by_hand = into.value !== "";
    });

    /** Starts work on the server and follows it; the dataset is opened when it is over. */
    async function start(name, argument, place) {
      tell(null);
      const dataset = into.value.trim();
      if (!dataset) {
        tell(new Error("Give the dataset a name first."));
        into.focus();
        return null;
      }
      await studio.flush();
      try {
        const answer = await call(server, name, { ...argument, dataset }, 60);
        studio.task(answer).then(async (task) => {
          named_by_hand = false;
          if (task.state === "failed") return;
          await studio.choose(answer.name);
          if (!chosen.length && !sending) panel.show(false); // the pictures are what one wants to see now
        });
        document.dispatchEvent(new CustomEvent("safelight:look"));
        return answer;
      } catch (error) {
        tell(error, place);
        return null;
      }
    }

    // ---- from the browser ----

    const files = h("input", { type: "file", id: "studio-import-files", multiple: true, class: "sl-hidden", tabindex: "-1", "aria-hidden": "true" });
    const folder = h("input", { type: "file", id: "studio-import-folder", webkitdirectory: true, class: "sl-hidden", tabindex: "-1", "aria-hidden": "true" });
    const zone = h(
      "div",
      { class: "sl-drop", id: "studio-drop" },
      h("p", {}, "Drop pictures, folders or a .zip here"),
      h(
        "div",
        { class: "sl-actions" },
        h("button", { type: "button", class: "sl-button", onclick: () => files.click() }, "Choose files"),
        h("button", { type: "button", class: "sl-button", onclick: () => folder.click() }, "Choose a folder"),
      ),
      h("p", { class: "sl-muted" }, "Captions come along: .txt or .caption beside a picture, or metadata.jsonl or .csv. Folders such as 10_name stay."),
    );
    const summary = h("p", { class: "sl-muted", role: "status" });
    const bar = h("progress", { max: "1", "aria-label": "Sending files", hidden: true });
    const go = h("button", { type: "button", class: "sl-button sl-primary", id: "studio-import-go", hidden: true, onclick: send }, "Import");
    const stop = h("button", { type: "button", class: "sl-button", hidden: true, onclick: cancel }, "Cancel");
    const others = h("button", { type: "button", class: "sl-button", hidden: true, onclick: import_sent }, "Import without them");
    const failures = h("ul", { class: "sl-skipped" });

    function choose(found) {
      const wanted = found.filter(({ name }) => !is_hidden(name));
      chosen = wanted.filter(({ name }) => suffixes.some((suffix) => name.toLowerCase().endsWith(suffix)));
      chosen.sort((one, other) => (one.name < other.name ? -1 : 1));
      const captions = chosen.filter(({ name }) => CAPTIONS.test(name)).length;
      const archives = chosen.filter(({ name }) => /\.zip$/i.test(name)).length;
      const bytes = chosen.reduce((sum, { file }) => sum + file.size, 0);
      const kinds = [...new Set(wanted.filter((one) => !chosen.includes(one)).map(({ name }) => ending(name)))];
      const parts = [many(chosen.length - captions - archives, "picture"), captions && many(captions, "caption file"), archives && many(archives, "archive"), megabytes(bytes)];
      const rest = kinds.length ? ` Left out here: ${many(wanted.length - chosen.length, "other file")} (${kinds.slice(0, 6).join(", ")}).` : "";
      setText(summary, chosen.length ? `${parts.filter(Boolean).join(" · ")}.${rest}` : `No pictures among them.${rest}`);
      sending = null;
      failures.replaceChildren();
      tell(null);
      draw();
      if (chosen.length) go.focus();
    }

    function draw() {
      const busy = Boolean(sending && !sending.over);
      const failed = sending && sending.over && sending.failed.length;
      go.hidden = busy || !chosen.length;
      stop.hidden = !sending;
      others.hidden = !failed || !sending.done;
      bar.hidden = !sending;
      setText(go, failed ? `Send ${many(sending.failed.length, "file")} again` : `Import ${many(chosen.length, "file")}`);
      if (!sending) return;
      bar.max = sending.total || 1;
      bar.value = sending.sent;
      const time = busy && sending.seconds_left !== null ? ` · ${left(sending.seconds_left)}` : "";
      setText(summary, `Sent ${sending.done.toLocaleString("en")} of ${many(chosen.length, "file")} · ${megabytes(sending.sent)} of ${megabytes(sending.total)}${time}`);
      panel.note(busy ? `${Math.floor((100 * sending.sent) / (sending.total || 1))}%` : "");
    }

    let drawing = false;

    /** Of thousands of files, many come in the time that one drawing takes. */
    function draw_soon() {
      if (drawing) return;
      drawing = true;
      window.setTimeout(() => {
        drawing = false;
        draw();
      }, 100);
    }

    async function send() {
      if (!into.value.trim()) {
        tell(new Error("Give the dataset a name first."));
        into.focus();
        return;
      }
      tell(null);
      failures.replaceChildren();
      sending ||= new Sending(chosen, draw_soon);
      const mine = sending;
      mine.over = false;
      draw();
      stop.focus();
      let whole = false;
      try {
        whole = await mine.run();
      } catch (error) {
        tell(error);
      }
      if (sending !== mine) return; // cancelled
      mine.over = true;
      draw();
      if (whole) return import_sent();
      failures.replaceChildren(...mine.failed.slice(0, 100).map(({ one, why }) => h("li", {}, h("strong", {}, one.name), ": ", why)));
      tell(new Error(`${many(mine.failed.length, "file")} did not come. What came is kept here: send the rest again, or import without.`));
      go.focus();
    }

    async function import_sent() {
      const answer = await start("import_sent", { upload: sending.id, files: sending.done });
      if (!answer) return draw();
      sending = null;
      chosen = [];
      failures.replaceChildren();
      setText(summary, "");
      panel.note("");
      draw();
    }

    async function cancel() {
      const mine = sending;
      sending = null;
      mine.stop();
      panel.note("");
      setText(summary, `Cancelled. Nothing was imported; ${many(chosen.length, "file")} are still chosen.`);
      draw();
      go.focus();
      try {
        await call(server, "drop_sent", { upload: mine.id });
      } catch (error) {
        if (error.told) notify(error.message, "bad"); // else: what was sent is swept later
      }
    }

    for (const input of [files, folder]) {
      input.addEventListener("change", () => {
        if (input.files.length) choose(picked_files(input));
        input.value = "";
      });
    }
    window.addEventListener("beforeunload", (event) => {
      if (sending && !sending.over) event.preventDefault();
    });

    // The whole tab takes what is dropped; a file that misses it must not replace the page.
    const tab = element.closest("#panel-dataset") || element;
    const has_files = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
    let over = 0;
    const mark = (change) => {
      over = change === null ? 0 : Math.max(0, over + change);
      zone.classList.toggle("sl-over", over > 0);
    };
    tab.addEventListener("dragenter", (event) => has_files(event) && mark(1));
    tab.addEventListener("dragleave", (event) => has_files(event) && mark(-1));
    document.addEventListener("dragover", (event) => {
      if (has_files(event) && current_tab() === "dataset") event.preventDefault();
    });
    document.addEventListener("drop", async (event) => {
      if (!has_files(event) || current_tab() !== "dataset") return;
      event.preventDefault();
      mark(null);
      if (sending && !sending.over) return notify("Files are being sent. Wait for them, or cancel.", "bad");
      const found = dropped_files(event.dataTransfer);
      panel.open();
      try {
        choose(await found);
      } catch {
        tell(new Error("The browser could not read what was dropped. Choose the files instead."));
      }
    });

    // ---- from this machine, and by address ----

    const path = h("input", { id: "studio-import-path", class: "sl-field", autocomplete: "off", spellcheck: "false", "aria-describedby": "studio-import-where" });
    const where = h("p", { class: "sl-muted", id: "studio-import-where" });
    const here = h(
      "form",
      { class: "sl-form" },
      h("label", { for: path.id }, "Folder or .zip on this machine", path),
      where,
      h("div", { class: "sl-actions" }, h("button", { class: "sl-button" }, "Import this folder")),
    );
    here.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (!path.value.trim()) {
        tell(new Error("Type or paste the folder's whole path first."), where);
        return path.focus();
      }
      if (await start("import_path", { path: path.value.trim() }, where)) path.value = "";
    });

    const address = h("input", { id: "studio-import-address", class: "sl-field", autocomplete: "off", spellcheck: "false", placeholder: "hf:owner/name, or the address of a dataset or .zip" });
    const column = h("input", { id: "studio-import-column", class: "sl-field", autocomplete: "off", spellcheck: "false", placeholder: "found by its name" });
    const most = h("input", { id: "studio-import-most", class: "sl-field", type: "number", min: "1", max: "100000", value: "2000" });
    let source = "";
    const facts = h("div", { class: "sl-facts-of", role: "status" });
    const fetch_it = h("button", { type: "button", class: "sl-button sl-primary", hidden: true, onclick: import_address }, "Fetch and import");
    const away = h(
      "form",
      { class: "sl-form" },
      h("label", { for: address.id }, "From Hugging Face, or a .zip by its address", address),
      facts,
      h(
        "div",
        { class: "sl-bar" },
        h("label", { for: column.id }, "Column of captions", column),
        h("label", { for: most.id }, "At most so many pictures", most),
      ),
      h("div", { class: "sl-actions" }, h("button", { class: "sl-button" }, "Look"), fetch_it),
    );
    address.addEventListener("input", () => {
      fetch_it.hidden = true;
      facts.replaceChildren();
    });
    away.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (!address.value.trim()) {
        tell(new Error("Paste an address first, or type hf:owner/name."), facts);
        return address.focus();
      }
      tell(null);
      facts.replaceChildren(h("p", { class: "sl-muted" }, "Asking…"));
      try {
        const plan = await call(server, "look_at_address", { address: address.value.trim() }, 90);
        facts.replaceChildren(
          h("p", {}, h("strong", {}, plan.title)),
          h("ul", { class: "sl-notes sl-notes-fact" }, plan.facts.map((text) => h("li", {}, text))),
          plan.warnings.length ? h("ul", { class: "sl-notes sl-notes-warning" }, plan.warnings.map((text) => h("li", {}, text))) : "",
        );
        source = plan.source; // exactly what is shown here, whatever happens at the hub meanwhile
        fetch_it.hidden = false;
        if (!into.value.trim()) {
          into.value = plan.name;
          named_by_hand = true;
        }
        fetch_it.focus();
      } catch (error) {
        facts.replaceChildren();
        tell(error, facts);
        address.focus();
      }
    });

    async function import_address() {
      const argument = { address: source, column: column.value.trim(), most: Number(most.value) || 0 };
      if (!(await start("import_from", argument, facts))) return;
      address.value = "";
      fetch_it.hidden = true;
      facts.replaceChildren();
    }

    panel.body.append(
      h("label", { for: into.id, class: "sl-into" }, "Into the dataset", into),
      known,
      h("p", { class: "sl-muted" }, "A new name makes a new dataset; the name of one that is here adds to it. One undo takes all of it out again."),
      told,
      zone,
      files,
      folder,
      summary,
      bar,
      h("div", { class: "sl-actions" }, go, others, stop),
      failures,
      h("div", { class: "sl-import-ways" }, here, away),
    );
    studio.on("dataset", name_it);
    studio.on("state", name_it);
    panel.on_open(async () => {
      name_it();
      if (suffixes.length) return;
      try {
        const state = await call(server, "import_state");
        suffixes = state.suffixes;
        setText(where, state.where);
      } catch (error) {
        tell(error);
      }
    });
    call(server, "import_state").then(
      (state) => {
        suffixes = state.suffixes;
        setText(where, state.where);
      },
      () => {}, // asked again when the panel is opened
    );
  });
})();
