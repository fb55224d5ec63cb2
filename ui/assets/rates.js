// The learning rate over the run that is planned: a small curve with its highest and lowest value, and the same in words.
(() => {
  "use strict";
  const { h } = window.safelight;
  const narrow = window.matchMedia("(max-width: 600px)");
  const HEIGHT = 120;
  const LEFT = 64;
  const RIGHT = 16;
  const TOP = 12;
  const BOTTOM = 26;

  function s(tag, attributes, ...children) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  const number = (value) => (value === 0 ? "0" : value < 1e-3 ? value.toExponential().replace(/(\.\d)\d*e/, "$1e") : String(Number(value.toPrecision(3))));

  function draw({ points, warmup, text }) {
    const WIDTH = narrow.matches ? 400 : 720; // drawn at about its own size, so that its letters stay readable
    const rates = points.map((point) => point[1]);
    const high = Math.max(...rates);
    const low = Math.min(...rates);
    const last = points.at(-1)[0];
    const x = (step) => LEFT + ((WIDTH - LEFT - RIGHT) * (step - 1)) / Math.max(1, last - 1);
    const y = (rate) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - rate / high);
    const svg = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "sl-chart sl-rates", role: "img", "aria-label": text });
    const marked = y(low) - y(high) > 18 ? [high, low] : [high];
    for (const rate of new Set(marked)) {
      svg.append(s("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(rate), y2: y(rate), class: "grid" }));
      svg.append(s("text", { x: LEFT - 8, y: y(rate) + 4, "text-anchor": "end" }, number(rate)));
    }
    const mark = (step, anchor, words) => svg.append(s("text", { x: x(step), y: HEIGHT - 6, "text-anchor": anchor }, words));
    mark(1, "start", "step 1");
    mark(last, "end", String(last));
    if (warmup > 0) {
      svg.append(s("line", { x1: x(warmup), x2: x(warmup), y1: TOP, y2: HEIGHT - BOTTOM, class: "resume" }));
      const share = warmup / last;
      if (share > 0.2 && share < 0.75) mark(warmup, "middle", `warm-up ends ${warmup}`);
    }
    const path = points.map(([step, rate], at) => `${at ? "L" : "M"}${x(step).toFixed(1)} ${y(rate).toFixed(1)}`).join("");
    svg.append(s("path", { d: points.length > 1 ? path : `${path}h${WIDTH - LEFT - RIGHT}`, class: "smooth" }));
    return svg;
  }

  /** The curve, its words, and a line for each rate that is outside its optimizer's band. */
  window.safelight.rate_curve = (rates) => [
    ...rates.warnings.map((text) => h("p", { class: "sl-message sl-busy" }, text)),
    h("figure", { class: "sl-figure" }, draw(rates), h("figcaption", {}, rates.text, h("br"), rates.optimizer)),
  ];
})();
