// Captions that are typed: saved when their box is left, one after the other for each picture, and never lost.
(() => {
  "use strict";
  const { notify, confirm_dialog, studio } = window.safelight;

  const unsaved = new Map(); // name -> text that is typed and not saved yet
  const saving = new Map(); // name -> promise
  const told = (name, words, tone) => studio.emit("caption", { name, words, tone });

  /** The text of a picture's boxes: what is typed, else what is kept. */
  studio.typed = (row) => unsaved.get(row.name) ?? row.caption;
  studio.is_typed = (name) => unsaved.has(name);
  studio.type = (name, text) => unsaved.set(name, text);

  studio.save = (name) => {
    if (!unsaved.has(name)) return saving.get(name) || Promise.resolve();
    const row = studio.row(name);
    const text = unsaved.get(name);
    if (!row || studio.builtin || text.trim() === row.caption) {
      unsaved.delete(name);
      return saving.get(name) || Promise.resolve();
    }
    const before = saving.get(name) || Promise.resolve();
    const work = before.then(() => send(studio.name, row, text)).finally(() => saving.get(name) === work && saving.delete(name));
    saving.set(name, work);
    return work;
  };

  async function send(dataset, row, text, force = false) {
    told(row.name, "Saving …");
    try {
      const answer = await studio.call("save_caption", { dataset, picture: row.name, text, before: row.caption, force, base: studio.training["model.base"] });
      if ("conflict" in answer) return await settle(dataset, row, text, answer.conflict);
      if (unsaved.get(row.name) === text) unsaved.delete(row.name); // else somebody has typed on
      studio.took(row, { caption: answer.caption, has: true, tokens: answer.tokens }, answer);
      told(row.name, "Saved", "sl-good");
    } catch (error) {
      told(row.name, "Not saved", "sl-bad");
      notify(`The caption of ${row.name} is not saved: ${error.told ? error.message : "Safelight does not answer."} What you typed is still in its box.`, "bad");
    }
  }

  /** Somebody or something else wrote the caption while it was being typed here. */
  async function settle(dataset, row, text, theirs) {
    const mine = await confirm_dialog(`The caption of ${row.name} was changed meanwhile to “${theirs}”. Put yours in its place?`, "Use mine");
    row.caption = theirs;
    if (mine) return send(dataset, row, text, true);
    unsaved.delete(row.name);
    studio.took(row, {});
    told(row.name, "");
  }

  studio.before_acting(() => Promise.all([...unsaved.keys()].map(studio.save)));
  studio.on("dataset", () => unsaved.clear());
  // a page that is left in the middle of a caption: the browser still sends what is asked for at once
  window.addEventListener("pagehide", () => studio.flush());
  window.addEventListener("beforeunload", (event) => {
    for (const name of unsaved.keys()) if (unsaved.get(name).trim() !== studio.row(name)?.caption) event.preventDefault();
  });
})();
