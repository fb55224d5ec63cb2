// Painting a mask over a picture in the viewer. The canvas holds what is left out as opaque red (drawn half transparent),
// so that erasing it is learning it; a mask's grey value is 255 minus the red's opacity.
(() => {
  "use strict";
  const { h, setText, call, notify, studio } = window.safelight;
  const SIDE = 1024; // as ui/studio/masks.py sends it
  const RED = "rgb(220 38 38)";
  const SAVE_MS = 800;
  const MOST_STEPS = 12;
  let size = 12; // of the brush, in percent of the picture's shorter side; kept from picture to picture
  let pending = null; // what is to be saved: {save}

  studio.before_acting(() => (pending ? pending() : null));

  function paint(viewer, server) {
    const { row, name, layer, side } = viewer;
    const dataset = studio.name;
    const scale = Math.min(1, SIDE / Math.max(row.width, row.height));
    const canvas = h("canvas", {
      class: "sl-paint",
      tabindex: "0",
      role: "img",
      width: Math.max(1, Math.round(row.width * scale)),
      height: Math.max(1, Math.round(row.height * scale)),
      "aria-label": `Mask of ${name}. Arrow keys move the brush, Space paints, X changes what is painted, square brackets change its size.`,
    });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const ring = h("div", { class: "sl-brush", "aria-hidden": "true" });
    const saved = h("span", { class: "sl-muted", role: "status" }, "Loading…");
    const steps = [];
    const undone = [];
    let ready = false;
    let drawing = null;
    let spot = { x: canvas.width / 2, y: canvas.height / 2 };
    let timer = 0;

    // ---- the controls -----------------------------------------------------------------------------------------

    const choice = (value, label, checked) => {
      const input = h("input", { type: "radio", name: "sl-paint-what", value, checked });
      input.addEventListener("change", show_ring);
      return [input, h("label", { class: "sl-choice" }, input, label)];
    };
    const [out, out_label] = choice("out", "what to leave out", true);
    const [learn, learn_label] = choice("learn", "what to learn", false);
    const slider = h("input", { type: "range", class: "sl-slider", id: "sl-paint-size", min: "1", max: "60", value: String(size) });
    const button = (label, work) => h("button", { type: "button", class: "sl-button", onclick: work }, label);
    const back = button("Undo stroke", () => turn(steps, undone));
    const again = button("Redo stroke", () => turn(undone, steps));
    slider.addEventListener("input", () => resize(Number(slider.value)));
    side.replaceChildren(
      h(
        "fieldset",
        { class: "sl-look-crop" },
        h("legend", {}, "Mask"),
        h("p", { class: "sl-muted" }, "Red is left out of training."),
        h("div", { class: "sl-actions", role: "radiogroup", "aria-label": "Paint" }, out_label, learn_label),
        h("label", { for: slider.id }, "Brush ( [ and ] )", slider),
        h(
          "div",
          { class: "sl-actions" },
          button("Leave all out", () => whole("source-over")),
          button("Learn all", () => whole("destination-out")),
          button("Invert", () => whole("xor")),
          back,
          again,
        ),
        saved,
      ),
    );
    layer.replaceChildren(canvas, ring);
    side.scrollIntoView({ block: "nearest" });

    // ---- strokes ------------------------------------------------------------------------------------------------

    const brush = () => Math.max(1, (size / 100) * Math.min(canvas.width, canvas.height));

    function resize(percent) {
      size = Math.min(60, Math.max(1, percent));
      slider.value = String(size);
      show_ring();
    }

    function show_ring() {
      const shown = canvas.clientWidth / canvas.width;
      const width = brush() * shown;
      Object.assign(ring.style, { width: `${width}px`, height: `${width}px`, left: `${spot.x * shown - width / 2}px`, top: `${spot.y * shown - width / 2}px` });
      ring.classList.toggle("sl-brush-learn", learn.checked);
    }

    const picture = () => context.getImageData(0, 0, canvas.width, canvas.height);

    /** Remembers the mask as it is, before something changes it. */
    function step() {
      steps.push(picture());
      if (steps.length > MOST_STEPS) steps.shift();
      undone.length = 0;
    }

    function turn(from, to) {
      if (!ready || !from.length) return;
      to.push(picture());
      context.putImageData(from.pop(), 0, 0);
      changed();
    }

    function whole(operation) {
      if (!ready) return;
      step();
      context.globalCompositeOperation = operation;
      context.fillStyle = RED;
      context.fillRect(0, 0, canvas.width, canvas.height);
      changed();
    }

    function line(from, to) {
      context.globalCompositeOperation = learn.checked ? "destination-out" : "source-over";
      context.strokeStyle = context.fillStyle = RED;
      context.lineWidth = brush();
      context.lineCap = "round";
      context.beginPath();
      context.moveTo(from.x, from.y);
      context.lineTo(to.x, to.y);
      context.stroke();
      context.beginPath();
      context.arc(to.x, to.y, brush() / 2, 0, 2 * Math.PI); // a line of no length is not drawn
      context.fill();
    }

    function changed() {
      back.disabled = !steps.length;
      again.disabled = !undone.length;
      setText(saved, "Not saved yet");
      window.clearTimeout(timer);
      timer = window.setTimeout(save, SAVE_MS);
      pending = save;
    }

    // ---- pointer and keys -----------------------------------------------------------------------------------------

    function place(event) {
      const rect = canvas.getBoundingClientRect();
      return { x: ((event.clientX - rect.left) * canvas.width) / rect.width, y: ((event.clientY - rect.top) * canvas.height) / rect.height };
    }

    canvas.addEventListener("pointerdown", (event) => {
      if (!ready || drawing !== null || event.button > 0) return;
      event.preventDefault();
      canvas.focus({ preventScroll: true });
      canvas.setPointerCapture(event.pointerId);
      drawing = event.pointerId;
      spot = place(event);
      step();
      line(spot, spot);
      show_ring();
    });
    canvas.addEventListener("pointermove", (event) => {
      if (drawing !== null && event.pointerId !== drawing) return;
      const all = event.getCoalescedEvents?.() || [];
      for (const one of all.length ? all : [event]) {
        const next = place(one);
        if (drawing !== null) line(spot, next);
        spot = next;
      }
      show_ring();
    });
    for (const kind of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(kind, (event) => {
        if (event.pointerId !== drawing) return;
        drawing = null;
        changed();
      });
    }

    function key(event) {
      if (event.altKey) return;
      const control = event.ctrlKey || event.metaKey;
      const on_canvas = event.target === canvas;
      if (event.target.closest("textarea")) return;
      const far = brush() / 2;
      const move = on_canvas && !control && { ArrowLeft: [-far, 0], ArrowRight: [far, 0], ArrowUp: [0, -far], ArrowDown: [0, far] }[event.key];
      if (move) {
        const next = { x: Math.min(canvas.width, Math.max(0, spot.x + move[0])), y: Math.min(canvas.height, Math.max(0, spot.y + move[1])) };
        spot = next;
      } else if (on_canvas && !control && event.key === " " && ready) {
        step();
        line(spot, spot);
        changed();
      } else if (control && event.key.toLowerCase() === "z") turn(event.shiftKey ? undone : steps, event.shiftKey ? steps : undone);
      else if (control && event.key.toLowerCase() === "y") turn(undone, steps);
      else if (!control && event.key === "[") resize(size - 2);
      else if (!control && event.key === "]") resize(size + 2);
      else if (!control && event.key.toLowerCase() === "x") (learn.checked ? out : learn).click();
      else return;
      event.preventDefault();
      event.stopPropagation();
      show_ring();
    }

    const dialog = layer.closest("dialog");
    dialog.addEventListener("keydown", key, { capture: true });
    const end_layout = viewer.on("layout", show_ring);

    // ---- loading and saving -----------------------------------------------------------------------------------------

    /** The mask as a grey PNG in base64; white is learned. */
    function png() {
      const data = picture();
      for (let at = 0; at < data.data.length; at += 4) {
        const grey = 255 - data.data[at + 3];
        data.data[at] = data.data[at + 1] = data.data[at + 2] = grey;
        data.data[at + 3] = 255;
      }
      const copy = h("canvas", { width: canvas.width, height: canvas.height });
      copy.getContext("2d").putImageData(data, 0, 0);
      return copy.toDataURL("image/png").split(",")[1];
    }

    async function save() {
      window.clearTimeout(timer);
      if (pending !== save) return;
      pending = null;
      setText(saved, "Saving…");
      try {
        const answer = await call(server, "save_mask", { dataset, picture: name, png: png() });
        if (dataset === studio.name) studio.took(name, { mask: answer.mask }, answer);
        if (!pending) setText(saved, answer.mask ? "Saved" : "Saved: nothing is left out");
      } catch (error) {
        pending ||= save;
        setText(saved, "Not saved");
        notify(`The mask of ${name} is not saved: ${error.told ? error.message : "Safelight does not answer."}`, "bad");
      }
    }

    async function load() {
      try {
        const answer = await call(server, "get_mask", { dataset, picture: name });
        if (answer.png) {
          const image = new Image();
          image.src = `data:image/png;base64,${answer.png}`;
          await image.decode();
          context.drawImage(image, 0, 0, canvas.width, canvas.height);
          const data = picture();
          for (let at = 0; at < data.data.length; at += 4) data.data.set([220, 38, 38, 255 - data.data[at]], at);
          context.putImageData(data, 0, 0);
        }
        ready = true;
        setText(saved, answer.png ? "" : "Everything is learned so far.");
        canvas.focus({ preventScroll: true });
        show_ring();
      } catch (error) {
        setText(saved, error.told ? error.message : "The mask could not be read.");
      }
    }

    back.disabled = again.disabled = true;
    load();
    return () => {
      dialog.removeEventListener("keydown", key, { capture: true });
      end_layout();
      save();
    };
  }

  window.safelight.paint_mask = paint;
})();
