// Captions that are typed: saved when their box is left, one after the other for each picture, and never lost.
(() => {
  "use strict";
  const { notify, confirm_dialog, studio } = window.safelight;

  const unsaved = new Map(); // name -> {text, before}: what is typed and not saved yet, and what it was typed over
  const saving = new Map(); // name -> promise
  const told = (name, words, tone) => studio.emit("caption", { name, words, tone });

  /** The text of a picture's boxes: what is typed, else what is kept. */
  studio.typed = (row) => unsaved.get(row.name)?.text ?? row.caption;
  studio.is_typed = (name) => unsaved.has(name);
  studio.type = (name, text) => unsaved.set(name, { text, before: unsaved.get(name)?.before ?? studio.row(name)?.caption });

  studio.save = (name) => {
    if (!unsaved.has(name)) return saving.get(name) || Promise.resolve();
    const row = studio.row(name);
    const { text } = unsaved.get(name);
    if (!row || studio.builtin || text.trim() === row.caption) {
      unsaved.delete(name);
      return saving.get(name) || Promise.resolve();
    }
    const before = saving.get(name) || Promise.resolve();
    const work = before.then(() => send(studio.name, name, text)).finally(() => saving.get(name) === work && saving.delete(name));
    saving.set(name, work);
    return work;
  };

  async function send(dataset, name, text, force = false) {
    told(name, "Saving …");
    const before = unsaved.get(name)?.before ?? studio.row(name)?.caption;
    try {
      const answer = await studio.call("save_caption", { dataset, picture: name, text, before, force, base: studio.training["model.base"] });
      if ("conflict" in answer) return await settle(dataset, name, text, answer.conflict);
      if (unsaved.get(name)?.text === text) unsaved.delete(name);
      else if (unsaved.has(name)) unsaved.get(name).before = answer.caption; // somebody has typed on
      studio.took(name, { caption: answer.caption, has: true, tokens: answer.tokens }, answer);
      told(name, "Saved", "sl-good");
    } catch (error) {
      told(name, "Not saved", "sl-bad");
      notify(`The caption of ${name} is not saved: ${error.told ? error.message : "Safelight does not answer."} What you typed is still in its box.`, "bad");
    }
  }

  /** Somebody or something else wrote the caption while it was being typed here. */
  async function settle(dataset, name, text, theirs) {
    const mine = await confirm_dialog(`The caption of ${name} was changed meanwhile to “${theirs}”. Put yours in its place?`, "Use mine");
    if (mine) return send(dataset, name, text, true);
    unsaved.delete(name);
    studio.took(name, { caption: theirs });
    told(name, "");
  }

  studio.before_acting(() => Promise.all([...unsaved.keys()].map(studio.save)));
  studio.on("dataset", () => unsaved.clear());
  // a page that is left in the middle of a caption: the browser still sends what is asked for at once
  window.addEventListener("pagehide", () => studio.flush());
  window.addEventListener("beforeunload", (event) => {
    for (const name of unsaved.keys()) if (unsaved.get(name).text.trim() !== studio.row(name)?.caption) event.preventDefault();
  });
})();
