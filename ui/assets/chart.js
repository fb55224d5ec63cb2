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

  const square = (x, y, half, kind) => s("rect", { x: x - half, y: y - half, width: 2 * half, height: 2 * half, class: kind });
  const number = (value) => String(Number(value.toPrecision(3)));

  /** A measured loss with its standard error to both sides; nothing where it was not measured. */
  const around = (loss, spread) => (loss === null ? [] : [loss - (spread ?? 0), loss + (spread ?? 0)]);

  /** The range of the y axis: everything that is smoothed or measured, else the raw losses without their wildest 2 %. */
  function range(data) {
    const raw = data.points.flatMap(([, low, high]) => [low, high]).filter((value) => value !== null).sort((a, b) => a - b);
    const measured = data.validations.flatMap(([, loss, spread, trained, its]) => [...around(loss, spread), ...around(trained, its)]);
    const sure = [...data.points.map((point) => point[3]), ...measured].filter((v) => v !== null);
    const at = (share) => raw[Math.min(raw.length - 1, Math.floor(share * raw.length))];
    // Where the loss is measured, that is what to look at: single steps vary by far more and are cut off at the edges.
    const measures = data.validations.length > 1;
    const low = Math.min(...(measures ? [] : [at(0.01)]), ...sure);
    const high = Math.max(...(measures ? [] : [at(0.98)]), ...sure);
    const margin = (high - low || Math.abs(high) || 1) * (measures ? 0.15 : 0.06);
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
    svg.append(s("path", { d: line(raw), class: data.validations.length > 1 ? "raw faint" : "raw" }));
    svg.append(s("path", { d: line(kept.map(([step, , , smooth]) => [step, smooth])), class: "smooth" }));
    const trained = data.validations.map(([step, , , loss, spread]) => [step, loss, spread]);
    for (const [rows, kind] of [
      [trained, "trained"],
      [data.validations, "held-out"],
    ]) {
      const shown = rows.filter(([, loss]) => loss !== null);
      const edge = (sign) => shown.map(([step, loss, spread]) => [step, loss + sign * (spread ?? 0)]);
      if (shown.length > 1) {
        svg.append(s("path", { d: `${line([...edge(1), ...edge(-1).reverse()])}Z`, class: `band ${kind}` }));
        svg.append(s("path", { d: line(shown), class: kind }));
      }
      const size = shown.length > 60 ? 2 : 4;
      for (const [step, loss] of shown) {
        const mark = kind === "held-out" ? s("circle", { cx: x(step), cy: y(loss), r: size, class: kind }) : square(x(step), y(loss), size, kind);
        svg.append(mark);
      }
    }
    const best = data.validations.find(([step]) => step === data.best);
    if (best) svg.append(s("circle", { cx: x(best[0]), cy: y(best[1]), r: 8, class: "best" }));
    return svg;
  }

  function legend(data) {
    const entry = (kind, text) => h("span", { class: `sl-key sl-key-${kind}` }, text);
    return h(
      "p",
      { class: "sl-legend" },
      entry("smooth", "loss, smoothed"),
      entry("raw", "each step"),
      data.validations.length ? entry("held-out", "held-out pictures, with standard error") : null,
      data.validations.some((row) => row[3] !== null) ? entry("trained", "training pictures, measured in the same way") : null,
      data.best === null ? null : entry("best", `lowest held-out loss (step ${data.best})`),
      data.resumes.length ? entry("resume", "went on here") : null,
    );
  }

  const MEASURED = ["Step", "Held-out loss", "± standard error", "Training pictures", "± standard error", "Gap"];

  function table(data) {
    const told = ([step, loss, spread, trained, its]) => {
      const gap = trained === null || loss === null ? null : number(loss - trained);
      return [step === data.best ? `${step} (lowest)` : step, loss, spread, trained, trained === null ? null : its, gap];
    };
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
        ? h("div", { class: "sl-scroll" }, h("table", { class: "sl-table" }, head(MEASURED), h("tbody", {}, data.validations.map(told).map(row))))
        : null,
    );
  }

  /** Everything about the curve as a list of nodes. */
  window.safelight.loss_curve = (data, text) => {
    if (!data.points.length) return [h("p", { class: "sl-muted" }, "The curve appears with the first step.")];
    return [draw(data, text), legend(data), text ? h("p", {}, text) : null, table(data)];
  };
})();
