// A picture in full size: the crop that training will use as a frame to drag and zoom, its caption, and tools (masks).
//
// A tool is {id, title, start(viewer)}; start returns a function that ends it. `viewer` has .name, .row, .image (the <img>),
// .layer (lies exactly over the picture as it is shown, whatever its size: put a canvas into it), .side (for controls),
// and .on("layout" | "close", work).
(() => {
  "use strict";
  const { h, setText, redraw, notify, confirm_dialog, studio } = window.safelight;

  const MAX_ZOOM = 16;
  const SAVE_MS = 500;
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

  /** The part of a picture that is trained, in its own pixels: as `fit` of trainer/dataset/buckets.py places it. */
  function crop_box(row, mark) {
    const { width, height, bucket } = row;
    const [bucket_width, bucket_height] = bucket;
    const { x, y, zoom } = mark || { x: 0.5, y: 0.5, zoom: 1 };
    const scale = Math.max(bucket_width / width, bucket_height / height) * zoom;
    const box = { width: Math.min(width, bucket_width / scale), height: Math.min(height, bucket_height / scale) };
    box.left = clamp(x * width - box.width / 2, 0, width - box.width);
    box.top = clamp(y * height - box.height / 2, 0, height - box.height);
    return box;
  }

  function make_viewer() {
    const image = h("img", { class: "sl-look-image", alt: "", draggable: "false" });
    const frame = h("div", { class: "sl-crop", tabindex: "0", role: "group", "aria-roledescription": "crop frame" });
    const layer = h("div", { class: "sl-look-layer" });
    const stage = h("div", { class: "sl-look-stage" }, image, h("div", { class: "sl-look-shade" }, frame), layer);
    const shade = frame.parentNode;
    const title = h("h2", { id: "sl-look-title" });
    const position = h("span", { class: "sl-muted" });
    const before = h("button", { type: "button", class: "sl-button sl-look-arrow", "aria-label": "Picture before (left arrow)", onclick: () => go(-1) }, "←");
    const after = h("button", { type: "button", class: "sl-button sl-look-arrow", "aria-label": "Next picture (right arrow)", onclick: () => go(1) }, "→");
    const close = h("button", { type: "button", class: "sl-button", onclick: () => dialog.close() }, "Close");
    const box = h("textarea", { class: "sl-field", id: "sl-look-caption", rows: "7", spellcheck: "false" });
    const tokens = h("span", { class: "sl-tokens" });
    const saved = h("span", { class: "sl-saved", role: "status" });
    const facts = h("p", { class: "sl-muted" });
    const problems = h("ul", { class: "sl-notes sl-notes-warning" });
    const crop_text = h("p", { class: "sl-crop-text", id: "sl-crop-text" });
    const zoom = h("input", { type: "range", class: "sl-slider", id: "sl-crop-zoom", min: "0", max: "100", step: "1" });
    const reset = h("button", { type: "button", class: "sl-button", onclick: () => change_mark(null) }, "Back to the middle");
    const hide = h("input", { type: "checkbox", checked: true });
    const crop_part = h(
      "fieldset",
      { class: "sl-look-crop" },
      h("legend", {}, "What training sees"),
      crop_text,
      h("label", { for: zoom.id }, "Nearer ( + − or the wheel )", zoom),
      reset,
      h("label", { class: "sl-choice" }, hide, "Show the frame"),
    );
    const tools = h("div", { class: "sl-actions", role: "group", "aria-label": "Tools" });
    const side_tool = h("div", { class: "sl-look-tool" });
    const pick = h("input", { type: "checkbox", onchange: () => studio.toggle(viewer.name) });
    const remove = h("button", { type: "button", class: "sl-button sl-stop", onclick: remove_it }, "Remove …");
    const side = h(
      "div",
      { class: "sl-look-side" },
      h("label", { for: box.id }, h("span", { class: "sl-look-label" }, "Caption ", tokens, " ", saved), box),
      problems,
      crop_part,
      tools,
      side_tool,
      facts,
      h("div", { class: "sl-actions" }, h("label", { class: "sl-choice" }, pick, "Selected ( x )"), remove),
    );
    const dialog = h(
      "dialog",
      { class: "sl-dialog sl-look", "aria-labelledby": title.id },
      h("div", { class: "sl-look-head" }, title, position, h("div", { class: "sl-actions" }, before, after, close)),
      h("div", { class: "sl-look-main" }, stage, side),
    );
    const listeners = { layout: new Set(), close: new Set() };
    const viewer = {
      name: "",
      row: null,
      image,
      layer,
      side: side_tool,
      on: (event, work) => {
        listeners[event].add(work);
        return () => listeners[event].delete(work);
      },
    };
    let mark = null;
    let end_tool = null;
    let active_tool = "";
    let saving = 0;
    let pending = null; // the crop that is not on the disk yet
    let saved_before = Promise.resolve();

    // ---- one picture ----------------------------------------------------------------------------------------------

    function show(name) {
      stop_tool();
      save_pending();
      viewer.name = name;
      const row = studio.row(name);
      viewer.row = row;
      mark = pending?.name === name ? pending.value : row.mark;
      setText(title, name);
      box.setAttribute("aria-label", `Caption of ${name}`);
      image.alt = row.caption || name;
      image.hidden = Boolean(row.fault);
      if (!row.fault && image.getAttribute("src") !== row.url) image.src = row.url;
      setText(saved, "");
      draw();
      for (const step of [1, -1]) {
        const next = studio.row(studio.step_from(name, step));
        if (next && !next.fault) new Image().src = next.url; // so that the next one is there at once
      }
    }

    /** What may change while the picture stays. */
    function draw() {
      const row = studio.row(viewer.name);
      if (!row) return dialog.close(); // removed meanwhile
      viewer.row = row;
      if (pending?.name !== viewer.name) mark = row.mark;
      const text = studio.typed(row);
      if (box.value !== text) box.value = text;
      box.dataset.saved = row.caption;
      box.readOnly = studio.builtin;
      studio.show_tokens(tokens, row.tokens);
      const [at, of] = studio.position_of(viewer.name);
      setText(position, at ? `${at.toLocaleString("en")} of ${of.toLocaleString("en")}` : "");
      for (const [button, step] of [[before, -1], [after, 1]]) {
        const over = !studio.step_from(viewer.name, step);
        if (over && document.activeElement === button) stage_focus(); // a button that is off would take the keys along
        button.disabled = over;
      }
      pick.checked = studio.selection.has(viewer.name);
      remove.disabled = studio.builtin;
      setText(facts, [row.width ? `${row.width}×${row.height} pixels` : "", row.format, `${Math.max(1, Math.round(row.bytes / 1024)).toLocaleString("en")} KB`].filter(Boolean).join(" · "));
      redraw(problems, studio.problems_of(row), (found) => found.map((one) => h("li", {}, one)));
      redraw(tools, [studio.builtin, row.fault, active_tool, studio.tools.map((tool) => tool.id)], () => (studio.builtin || row.fault ? [] : studio.tools.map(tool_button)));
      lay_out();
    }

    function go(step) {
      const next = studio.step_from(viewer.name, step);
      if (!next) return;
      studio.save(viewer.name);
      show(next);
    }

    async function remove_it() {
      if (studio.builtin || !(await confirm_dialog(`Remove ${viewer.name} from ${studio.name}? Undo brings it back.`, "Remove"))) return;
      const name = viewer.name;
      const next = studio.step_from(name, 1) || studio.step_from(name, -1);
      if (next) show(next);
      else dialog.close();
      await studio.remove([name]);
    }

    // ---- the picture's place on the screen, and the frame over it ---------------------------------------------------

    function shown_rect() {
      const { width, height } = viewer.row;
      const scale = Math.min(stage.clientWidth / width, stage.clientHeight / height, Math.max(1, 512 / Math.max(width, height)) * 2);
      const size = { width: width * scale, height: height * scale, scale };
      return { ...size, left: (stage.clientWidth - size.width) / 2, top: (stage.clientHeight - size.height) / 2 };
    }

    const put = (node, { left, top, width, height }) => Object.assign(node.style, { left: `${left}px`, top: `${top}px`, width: `${width}px`, height: `${height}px` });

    function lay_out() {
      const row = viewer.row;
      const usable = Boolean(row && row.width && !row.fault);
      stage.classList.toggle("sl-look-broken", !usable);
      if (!usable || !stage.clientWidth) {
        crop_part.hidden = true;
        shade.hidden = true;
        return;
      }
      const rect = shown_rect();
      for (const node of [image, shade, layer]) put(node, rect);
      crop_part.hidden = !row.bucket;
      shade.hidden = !row.bucket || !hide.checked || Boolean(active_tool);
      if (row.bucket) draw_crop(rect);
      for (const work of listeners.layout) work();
    }

    function draw_crop(rect) {
      const row = viewer.row;
      const crop = crop_box(row, mark);
      put(frame, { left: crop.left * rect.scale, top: crop.top * rect.scale, width: crop.width * rect.scale, height: crop.height * rect.scale });
      const share = Math.round((100 * crop.width * crop.height) / (row.width * row.height));
      const enlarged = row.bucket[0] / crop.width;
      const part = share >= 100 ? "The whole picture" : `${share}% of the picture`;
      const made = enlarged > 1.01 ? `, enlarged ${enlarged.toFixed(1)}×` : "";
      const text = `${part} as ${row.bucket[0]}×${row.bucket[1]} pixels${made}. ${mark ? "Chosen by hand." : share >= 100 ? "" : "From the middle; drag the frame to choose."}`.trim();
      setText(crop_text, text);
      frame.setAttribute("aria-label", `Crop of ${row.name}: ${text} Arrow keys move it, plus and minus zoom.`);
      frame.classList.toggle("sl-crop-whole", share >= 100);
      zoom.value = String(Math.round((100 * Math.log(mark?.zoom || 1)) / Math.log(MAX_ZOOM)));
      zoom.setAttribute("aria-valuetext", `${(mark?.zoom || 1).toFixed(1)} times`);
      zoom.disabled = frame.inert = studio.builtin;
      reset.disabled = !mark || studio.builtin;
    }

    // ---- choosing the crop --------------------------------------------------------------------------------------------

    /** Keeps the frame inside the picture, so that what is kept is what is seen. */
    function settled(wanted) {
      if (!wanted) return null;
      const row = viewer.row;
      const near = { ...wanted, zoom: clamp(wanted.zoom, 1, MAX_ZOOM) };
      const crop = crop_box(row, near);
      const exact = (value) => Math.round(value * 1e5) / 1e5;
      near.x = exact((crop.left + crop.width / 2) / row.width);
      near.y = exact((crop.top + crop.height / 2) / row.height);
      near.zoom = exact(near.zoom);
      const middle = Math.abs(near.x - 0.5) < 1e-4 && Math.abs(near.y - 0.5) < 1e-4 && near.zoom < 1.001;
      return middle ? null : near;
    }

    function change_mark(wanted) {
      if (studio.builtin || !viewer.row?.bucket) return;
      mark = settled(wanted);
      draw_crop(shown_rect());
      pending = { name: viewer.name, value: mark };
      window.clearTimeout(saving);
      saving = window.setTimeout(save_pending, SAVE_MS);
    }

    const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

    async function save_mark(wanted) {
      const { name, value } = wanted;
      const settle = () => pending === wanted && (pending = null);
      const row = studio.row(name);
      if (!row || same(row.mark, value)) return settle();
      try {
        const answer = await studio.call("set_mark", { picture: name, mark: value });
        settle();
        const enlarged = row.bucket[0] / crop_box(row, answer.mark).width;
        studio.took(name, { mark: answer.mark, enlarged }, answer);
      } catch (error) {
        settle();
        notify(`The crop of ${name} is not saved: ${error.told ? error.message : "Safelight does not answer."}`, "bad");
        if (viewer.name === name) draw();
      }
    }

    /** One crop after the other, so that the last one wins. */
    function save_pending() {
      window.clearTimeout(saving);
      const wanted = pending;
      if (wanted && !wanted.sent) {
        wanted.sent = true;
        saved_before = saved_before.then(() => save_mark(wanted));
      }
      return saved_before;
    }
    studio.before_acting(save_pending);

    const now = () => mark || { x: 0.5, y: 0.5, zoom: 1 };
    const move = (x, y) => change_mark({ ...now(), x: now().x + x, y: now().y + y });
    const zoom_by = (factor) => change_mark({ ...now(), zoom: now().zoom * factor });

    const fingers = new Map();
    let grip = null;

    function begin_grip() {
      const points = [...fingers.values()];
      const middle = { x: points.reduce((sum, point) => sum + point.x, 0) / points.length, y: points.reduce((sum, point) => sum + point.y, 0) / points.length };
      const spread = points.length > 1 ? Math.hypot(points[0].x - points[1].x, points[0].y - points[1].y) : 0;
      return { middle, spread };
    }

    shade.addEventListener("pointerdown", (event) => {
      if (studio.builtin || event.button > 0) return;
      event.preventDefault();
      shade.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      const crop = crop_box(viewer.row, mark);
      const start = { x: (crop.left + crop.width / 2) / viewer.row.width, y: (crop.top + crop.height / 2) / viewer.row.height, zoom: now().zoom };
      grip = { ...begin_grip(), start };
      frame.focus({ preventScroll: true });
    });
    shade.addEventListener("pointermove", (event) => {
      if (!grip || !fingers.has(event.pointerId)) return;
      fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      const { middle, spread } = begin_grip();
      const rect = shown_rect();
      change_mark({
        x: grip.start.x + (middle.x - grip.middle.x) / rect.width,
        y: grip.start.y + (middle.y - grip.middle.y) / rect.height,
        zoom: grip.spread && spread ? (grip.start.zoom * grip.spread) / spread : grip.start.zoom,
      });
    });
    for (const kind of ["pointerup", "pointercancel"]) {
      shade.addEventListener(kind, (event) => {
        fingers.delete(event.pointerId);
        grip = fingers.size ? { ...begin_grip(), start: now() } : null;
      });
    }
    shade.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        zoom_by(Math.exp(-event.deltaY / 400));
      },
      { passive: false },
    );
    zoom.addEventListener("input", () => change_mark({ ...now(), zoom: MAX_ZOOM ** (Number(zoom.value) / 100) }));
    hide.addEventListener("change", lay_out);

    // ---- tools ----------------------------------------------------------------------------------------------------------

    function tool_button(tool) {
      const on = active_tool === tool.id;
      return h("button", { type: "button", class: "sl-button", "aria-pressed": String(on), "data-key": tool.id, onclick: () => (on ? stop_tool() : start_tool(tool)) }, on ? `Leave ${tool.title}` : tool.title);
    }

    function start_tool(tool) {
      stop_tool();
      active_tool = tool.id;
      draw();
      end_tool = tool.start(viewer) || null;
    }

    function stop_tool() {
      if (!active_tool) return;
      active_tool = "";
      end_tool?.();
      end_tool = null;
      layer.replaceChildren();
      side_tool.replaceChildren();
      if (studio.row(viewer.name)) draw();
    }

    // ---- keys and wiring ------------------------------------------------------------------------------------------------

    box.addEventListener("focus", () => studio.complete(box));
    box.addEventListener("input", () => studio.type(viewer.name, box.value));
    box.addEventListener("blur", () => studio.save(viewer.name));
    box.addEventListener("keydown", (event) => {
      if (event.defaultPrevented) return;
      if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        go(1);
      } else if (event.key === "Escape") {
        event.preventDefault();
        stage_focus();
      }
    });

    const stage_focus = () => (shade.hidden ? close : frame).focus({ preventScroll: true });

    dialog.addEventListener("keydown", (event) => {
      if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.target.closest("textarea, input:not([type=checkbox]), select") || (active_tool && event.key !== "Escape")) return;
      const moving = event.target === frame;
      const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (steps && (moving ? event.shiftKey : false)) {
        event.preventDefault();
        return move(steps[0] * 0.02, steps[1] * 0.02);
      }
      const keys = {
        ArrowLeft: () => go(-1),
        ArrowRight: () => go(1),
        ArrowUp: () => moving && move(0, -0.02),
        ArrowDown: () => moving && move(0, 0.02),
        "+": () => zoom_by(1.1),
        "=": () => zoom_by(1.1),
        "-": () => zoom_by(1 / 1.1),
        0: () => change_mark(null),
        e: () => box.focus(),
        x: () => studio.toggle(viewer.name),
        Delete: remove_it,
      };
      const work = keys[event.key];
      if (!work) return;
      event.preventDefault();
      work();
    });
    dialog.addEventListener("close", async () => {
      stop_tool();
      for (const work of listeners.close) work();
      const name = viewer.name;
      dialog.remove();
      for (const end of ends) end();
      resize.disconnect();
      current = null;
      studio.save(name);
      await save_pending();
      studio.focus_card(name);
    });
    const ends = [
      studio.on("row", () => draw()),
      studio.on("rows", () => draw()),
      studio.on("crops", () => draw()),
      studio.on("selection", () => draw()),
      studio.on("problems", () => draw()),
      studio.on("dataset", () => dialog.close()),
      studio.on("caption", ({ name, words, tone }) => {
        if (name !== viewer.name) return;
        setText(saved, words);
        saved.className = `sl-saved ${tone || ""}`;
      }),
    ];
    const resize = new ResizeObserver(() => viewer.row && lay_out());

    document.body.append(dialog);
    dialog.showModal();
    resize.observe(stage);
    return { show, focus: stage_focus };
  }

  let current = null;

  studio.open_viewer = (name) => {
    if (!studio.row(name)) return;
    const fresh = !current;
    current ||= make_viewer();
    current.show(name);
    if (fresh) current.focus();
  };
})();
