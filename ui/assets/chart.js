// The loss curve: an SVG of at most a few hundred points, the same numbers in words and in a table.
(() => {
  "use strict";
  const { h } = window.safelight;
  const narrow = window.matchMedia("(max-width: 600px)");
  const HEIGHT = 260;
  const LEFT = 52;
  const RIGHT = 16;
  const TOP = 14;
  const BOTTOM = 30;

  function s(tag, attributes, ...children) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  /** Round numbers that divide a range into about `count` parts. */
  function ticks(low, high, count) {
    const rough = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
    const values = [];
    for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) values.push(value);
    return values;
  }

  const number = (value) => String(Number(value.toPrecision(3)));

  /** The range of the y axis: everything that is smoothed or held out, and the raw losses without their wildest 2 %. */
  function range(data) {
    const raw = data.points.flatMap(([, low, high]) => [low, high]).filter((value) => value !== null).sort((a, b) => a - b);
    const sure = [...data.points.map((point) => point[3]), ...data.validations.map((point) => point[1])].filter((v) => v !== null);
    const at = (share) => raw[Math.min(raw.length - 1, Math.floor(share * raw.length))];
    const low = Math.min(at(0.01), ...sure);
    const high = Math.max(at(0.98), ...sure);
    const margin = (high - low || Math.abs(high) || 1) * 0.06;
    return [Math.max(0, low - margin), high + margin];
  }

  function draw(data, text) {
    const WIDTH = narrow.matches ? 400 : 720; // drawn at about its own size, so that its letters stay readable
    const [low, high] = range(data);
    const last = Math.max(data.total, data.points.at(-1)[0], 1);
    const x = (step) => LEFT + ((WIDTH - LEFT - RIGHT) * step) / last;
    const y = (loss) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - (Math.min(high, Math.max(low, loss)) - low) / (high - low));
    const svg = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "sl-chart", role: "img", "aria-label": text || "Loss curve" });
    for (const loss of ticks(low, high, 4)) {
      svg.append(s("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(loss), y2: y(loss), class: "grid" }));
      svg.append(s("text", { x: LEFT - 8, y: y(loss) + 4, "text-anchor": "end" }, number(loss)));
    }
    for (const step of ticks(0, last, 5)) svg.append(s("text", { x: x(step), y: HEIGHT - 8, "text-anchor": "middle" }, number(step)));
    for (const step of data.resumes) svg.append(s("line", { x1: x(step), x2: x(step), y1: TOP, y2: HEIGHT - BOTTOM, class: "resume" }));
    const kept = data.points.filter((point) => point.every((value) => value !== null));
    const raw = kept.flatMap(([step, least, most]) => (least === most ? [[step, least]] : [[step, least], [step, most]]));
    const line = (points) => points.map(([step, loss], at) => `${at ? "L" : "M"}${x(step).toFixed(1)} ${y(loss).toFixed(1)}`).join("");
    svg.append(s("path", { d: line(raw), class: "raw" }));
    svg.append(s("path", { d: line(kept.map(([step, , , smooth]) => [step, smooth])), class: "smooth" }));
    const held_out = data.validations.filter(([, loss]) => loss !== null);
    if (held_out.length > 1) svg.append(s("path", { d: line(held_out), class: "held-out" }));
    for (const [step, loss] of held_out) svg.append(s("circle", { cx: x(step), cy: y(loss), r: 4.5, class: "held-out" }));
    return svg;
  }

  function legend(data) {
    const entry = (kind, text) => h("span", { class: `sl-key sl-key-${kind}` }, text);
    return h(
      "p",
      { class: "sl-legend" },
      entry("smooth", "loss, smoothed"),
      entry("raw", "each step"),
      data.validations.length ? entry("held-out", "held-out pictures") : null,
      data.resumes.length ? entry("resume", "went on here") : null,
    );
  }

  function table(data) {
    const every = Math.max(1, Math.ceil(data.points.length / 20));
    const shown = data.points.filter((_, at) => at % every === 0 || at === data.points.length - 1);
    const row = (cells) => h("tr", {}, cells.map((cell, at) => h(at ? "td" : "th", at ? {} : { scope: "row" }, cell === null ? "-" : String(cell))));
    const head = (names) => h("thead", {}, h("tr", {}, names.map((name) => h("th", { scope: "col" }, name))));
    return h(
      "details",
      {},
      h("summary", {}, "The numbers as a table"),
      h("table", { class: "sl-table" }, head(["Step", "Lowest", "Highest", "Smoothed"]), h("tbody", {}, shown.map(row))),
      data.validations.length
        ? h("table", { class: "sl-table" }, head(["Step", "Held-out loss"]), h("tbody", {}, data.validations.map(row)))
        : null,
    );
  }

  /** Everything about the curve as a list of nodes. */
  window.safelight.loss_curve = (data, text) => {
    if (!data.points.length) return [h("p", { class: "sl-muted" }, "The curve appears with the first step.")];
    return [draw(data, text), legend(data), text ? h("p", {}, text) : null, table(data)];
  };
})();
