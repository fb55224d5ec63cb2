// The panel "Publish" of the Dataset tab: a dataset on Hugging Face. The token that is typed is sent once and forgotten.
(() => {
  "use strict";
  const { h, setText, call, confirm_dialog, studio } = window.safelight;

  window.safelight.define("studio_publish", ({ element, server }) => {
    const panel = studio.panel(element, { id: "publish", title: "Publish" });
    const field = (id, attributes = {}) => h("input", { id, class: "sl-field", autocomplete: "off", spellcheck: "false", ...attributes });
    const labelled = (text, input, help) => {
      if (help) input.setAttribute("aria-describedby", `${input.id}-help`);
      return h("div", { class: "sl-option" }, h("label", { for: input.id }, h("span", {}, text), input), help ? h("p", { class: "sl-muted", id: `${input.id}-help` }, help) : null);
    };
    const choice = (id, text, checked) => {
      const input = h("input", { type: "checkbox", id, checked });
      return [input, h("label", { class: "sl-choice", for: id }, input, text)];
    };

    const repo = field("publish-repo", { placeholder: "you/mira-pictures", required: true });
    const licence = h("select", { id: "publish-licence", class: "sl-select" }, h("option", { value: "" }, "none given"));
    const description = h("textarea", { id: "publish-description", class: "sl-field", rows: "4" });
    const token = field("publish-token", { type: "password" });
    const token_note = h("p", { class: "sl-muted", id: "publish-token-help" });
    token.setAttribute("aria-describedby", token_note.id);
    const [open_to_all, open_label] = choice("publish-public", "Everybody may see it", false);
    const [replace, replace_label] = choice("publish-replace", "Put a new version in the place of what is there", false);
    const go = h("button", { class: "sl-button sl-primary", id: "publish-go" }, "Publish");
    const note = h("p", { class: "sl-muted", role: "status" });
    const form = h(
      "form",
      { class: "sl-edit" },
      h("p", {}, "Sends copies of the pictures, without place, camera or other metadata, with their captions and a card to Hugging Face. Nothing is there before all of it is."),
      h(
        "div",
        { class: "sl-options" },
        labelled("Dataset on Hugging Face", repo, "OWNER/NAME: your user name or an organisation of yours first."),
        labelled("Licence", licence, "What others may do with it. Only whose pictures they are can choose one."),
        labelled("Description", description, "Markdown; it stands on the dataset's page, above the numbers."),
        h("div", { class: "sl-option" }, h("label", { for: token.id }, h("span", {}, "Token that may write"), token), token_note),
      ),
      open_label,
      replace_label,
      h("div", { class: "sl-actions" }, go, note),
    );

    function draw() {
      const count = studio.rows.length;
      go.disabled = !count || !repo.value.trim();
      setText(go, `Publish ${studio.pictures(count)} ${open_to_all.checked ? "for everybody" : "privately"}`);
      const uncaptioned = studio.rows.filter((row) => !row.caption).length;
      setText(note, uncaptioned ? `${studio.pictures(uncaptioned)} without a caption.` : "");
    }

    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (go.disabled) return;
      const where = repo.value.trim();
      const question = open_to_all.checked
        ? `Everybody will see the ${studio.pictures(studio.rows.length)} of ${studio.name} and their captions on huggingface.co/datasets/${where}. Publish them?`
        : `Everything that is in ${where} is replaced by this dataset; its older versions stay in its history. Go on?`;
      if ((open_to_all.checked || replace.checked) && !(await confirm_dialog(question, "Publish"))) return;
      go.disabled = true;
      const values = { repo: where, private: !open_to_all.checked, replace: replace.checked, licence: licence.value, description: description.value, token: token.value };
      const answer = await studio.act(server, "publish", values, { reload: false });
      if (answer) token.value = ""; // it is on its way; the page keeps none
      draw();
    });

    for (const input of [repo, open_to_all, replace]) input.addEventListener("input", draw);
    for (const event of ["rows", "dataset"]) studio.on(event, draw);
    panel.on_open(async () => {
      draw();
      let offered;
      try {
        offered = await call(server, "publish_form");
      } catch {
        return; // the strip says so when the server is away
      }
      if (licence.options.length === 1) licence.append(...offered.licences.map(([value, words]) => h("option", { value }, words)));
      token_note.replaceChildren(
        offered.token ? `Empty: the one from ${offered.token} is tried. ` : "Used for this alone, and not kept. ",
        h("a", { href: offered.tokens_page, target: "_blank", rel: "noopener noreferrer" }, "Make one"),
        " with write access to this dataset only.",
      );
      if (!repo.value && offered.user) repo.value = `${offered.user}/`;
    });
    panel.body.append(form);
  });
})();
