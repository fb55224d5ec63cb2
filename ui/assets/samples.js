// Sample pictures: one row per prompt, one column per step, and a large view with arrow keys and a step slider.
(() => {
  "use strict";
  const { h, setText, open_dialog } = window.safelight;

  function by_prompt(samples) {
    const rows = new Map();
    for (const sample of samples) {
      if (!rows.has(sample.index)) rows.set(sample.index, []);
      rows.get(sample.index).push(sample);
    }
    return [...rows.entries()].sort(([a], [b]) => a - b).map(([, row]) => row.sort((a, b) => a.step - b.step));
  }

  const step_name = (sample) => (sample.step === 0 ? "before training" : `step ${sample.step}`);

  function large_view(rows, row, column) {
    const picture = h("img", { class: "sl-large", alt: "" });
    const words = h("p", { role: "status" });
    const slider = h("input", { type: "range", min: "0", "aria-label": "Step", class: "sl-slider" });
    const move = (down, right) => {
      row = (row + down + rows.length) % rows.length;
      column = Math.min(rows[row].length - 1, Math.max(0, column + right));
      const sample = rows[row][column];
      picture.src = sample.url;
      picture.alt = `${sample.prompt}, ${step_name(sample)}`;
      slider.max = String(rows[row].length - 1);
      slider.value = String(column);
      slider.setAttribute("aria-valuetext", step_name(sample));
      setText(words, `${sample.prompt} · ${step_name(sample)} · seed ${sample.seed}`);
    };
    slider.addEventListener("input", () => move(0, Number(slider.value) - column));
    const button = (label, down, right) => h("button", { type: "button", class: "sl-button", onclick: () => move(down, right) }, label);
    const controls = h(
      "div",
      { class: "sl-actions" },
      button("Earlier step", 0, -1),
      button("Later step", 0, 1),
      rows.length > 1 ? button("Other prompt", 1, 0) : null,
    );
    const content = h("div", { class: "sl-viewer" }, picture, slider, words, controls);
    content.addEventListener("keydown", on_key);
    const dialog = open_dialog("Sample", content);
    dialog.addEventListener("keydown", on_key);
    slider.focus();
    move(0, 0);

    function on_key(event) {
      const by = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!by || event.defaultPrevented) return;
      event.preventDefault();
      move(...by);
    }
  }

  const cells = new Map();
  let rows = [];

  /** One picture. Made once: a picture that is put into a new list is not fetched again. */
  function cell(sample) {
    const name = `${sample.prompt}, ${step_name(sample)}`;
    if (!cells.has(sample.url)) {
      const enlarge = () => {
        const row = rows.findIndex((samples) => samples[0].index === sample.index);
        large_view(rows, row, rows[row].findIndex((other) => other.url === sample.url));
      };
      const picture = h("img", { src: sample.thumb, alt: "", loading: "lazy" });
      const attributes = { type: "button", class: "sl-sample", "data-key": sample.url, "aria-label": `Enlarge: ${name}`, onclick: enlarge };
      cells.set(sample.url, h("li", {}, h("button", attributes, picture, h("span", {}, step_name(sample)))));
    }
    return cells.get(sample.url);
  }

  window.safelight.sample_rows = (samples) => {
    rows = by_prompt(samples);
    for (const url of cells.keys()) if (!samples.some((sample) => sample.url === url)) cells.delete(url);
    if (!samples.length) {
      return [h("p", { class: "sl-muted" }, "No samples yet. They are drawn before the first step, after the last, and in between as the settings say.")];
    }
    return rows.map((row) =>
      h("section", { class: "sl-sample-row" }, h("h3", {}, row[0].prompt), h("ul", { class: "sl-samples" }, row.map(cell))),
    );
  };
})();
