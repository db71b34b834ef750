// A zoomable map of one mosaic: pictures from the page's own data, boxes drawn crisp at any zoom on a canvas.
// Plain ES2020. report.js makes one SurveyMap for each mosaic and tells it when the threshold or the classes change.

// Boxes with sides below this many screen pixels are drawn as dots, and so are more boxes than this: the browser stays quick.
const DOT_BELOW_PX = 3;
const MOST_OUTLINES = 30000;
// One pixel of the mosaic is at most this many on the screen.
const MAX_SCALE = 16;
// Decoded tiles kept per map: 1 MB each.
const MOST_TILES = 80;

class SurveyMap {
  // root: the .mosaic element. mosaic: its decoded entry. state: {threshold, classes} shared by all maps. data: the JSON block.
  constructor(root, mosaic, state, data) {
    Object.assign(this, { root, mosaic, state, data });
    this.frame = root.querySelector(".map");
    this.still = root.querySelector(".canvas"); // the map for pages without scripts
    this.picture = this.still.querySelector("img");
    this.toggles = Array.from(root.querySelectorAll("input.layer"));
    this.tip = root.querySelector(".tip");
    this.status = root.querySelector(".status");
    this.canvas = document.createElement("canvas");
    this.canvas.setAttribute("aria-hidden", "true");
    this.frame.append(this.canvas);
    this.tiles = new Map();
    this.view = { scale: 1, x: 0, y: 0 }; // screen px a mosaic px; the mosaic px at the upper left corner of the canvas
    this.mark = null; // the box that is pointed at: {box, text}
    this.fitted = true;
    this.step = Math.max(mosaic.height, mosaic.width) / 65535; // mosaic px of one unit of a stored box
    this.still.querySelector("svg").remove(); // a copy of the boxes that would cost memory
    this.still.hidden = true;
    root.classList.add("live");
    this.listen();
    new ResizeObserver(() => this.resize()).observe(this.frame);
    // A canvas takes memory as its pixels do: maps far from the screen are drawn when they come near.
    this.near = false;
    new IntersectionObserver((entries) => {
      this.near = entries[entries.length - 1].isIntersecting;
      this.redraw();
    }, { rootMargin: "400px" }).observe(this.frame);
    this.picture.decode().then(() => this.redraw(), () => {});
    this.resize();
  }

  // ---- where things are ----

  fitScale() {
    return Math.min(this.width / this.mosaic.width, this.height / this.mosaic.height);
  }

  resize() {
    this.width = this.frame.clientWidth;
    this.height = this.frame.clientHeight;
    if (!this.width || !this.height) return;
    if (this.fitted) this.fit();
    else this.moveTo(this.view.scale, this.view.x, this.view.y);
  }

  fit() {
    const scale = this.fitScale();
    this.moveTo(scale, 0, 0);
  }

  // Shows the mosaic at a scale from an upper left corner, both within what makes sense.
  moveTo(scale, x, y) {
    const least = this.fitScale();
    scale = Math.min(Math.max(scale, least), Math.max(MAX_SCALE, least));
    const inside = (start, shown, length) =>
      shown >= length ? (length - shown) / 2 : Math.min(Math.max(start, 0), length - shown);
    this.view = {
      scale,
      x: inside(x, this.width / scale, this.mosaic.width),
      y: inside(y, this.height / scale, this.mosaic.height),
    };
    this.fitted = scale <= least * 1.0001;
    // While everything is shown a finger scrolls the page, once zoomed in it moves the map.
    this.frame.style.touchAction = this.fitted ? "pan-y" : "none";
    this.root.querySelector(".scale").textContent = `${(100 * scale).toFixed(scale < 0.1 ? 1 : 0)} %`;
    this.redraw();
  }

  // Zooms by a factor; the point (px, py) of the canvas stays where it is.
  zoom(factor, px = this.width / 2, py = this.height / 2) {
    const { scale, x, y } = this.view;
    const next = Math.min(Math.max(scale * factor, this.fitScale()), Math.max(MAX_SCALE, this.fitScale()));
    this.moveTo(next, x + px / scale - px / next, y + py / scale - py / next);
  }

  pan(dx, dy) {
    const { scale, x, y } = this.view;
    this.moveTo(scale, x + dx / scale, y + dy / scale);
  }

  // Brings a box (yxyx mosaic px) to the middle, large enough to be judged, and marks it.
  goTo(box, text) {
    const [y0, x0, y1, x1] = box;
    const side = Math.max(y1 - y0, x1 - x0, 4);
    const wanted = Math.min(this.width, this.height) / (6 * side);
    const scale = Math.min(Math.max(wanted, this.fitScale()), 6);
    this.moveTo(scale, (x0 + x1) / 2 - this.width / scale / 2, (y0 + y1) / 2 - this.height / scale / 2);
    this.point({ box, text });
    this.status.textContent = text;
  }

  // ---- what is shown ----

  // Which layer a detection is in: with annotations right or false, else its class.
  layerOf(i) {
    if (!this.mosaic.hits) return this.mosaic.classes[i];
    return this.mosaic.hits[i] & 1 ? 0 : 1;
  }

  // Calls each(y0, x0, y1, x1, layer, text) for every box that the threshold, the classes and this map's layers let through.
  // `text` is a function, because most boxes are never described.
  visit(each) {
    const { scores, classes, boxes, hits, truthClasses, truthBoxes, foundAt } = this.mosaic;
    const step = this.step;
    const shown = this.toggles.map((toggle) => toggle.checked);
    const least = this.state.cut;
    for (let i = 0; i < scores.length && scores[i] >= least; i++) { // best score first
      const layer = this.layerOf(i);
      if (!shown[layer] || !this.state.classes[classes[i]]) continue;
      each(boxes[4 * i] * step, boxes[4 * i + 1] * step, boxes[4 * i + 2] * step, boxes[4 * i + 3] * step, layer,
        () => `${this.data.classes[classes[i]]}, score ${scores[i].toFixed(3)}` + (hits ? (layer ? ", false" : ", right") : ""));
    }
    if (!hits || !shown[2]) return;
    for (let i = 0; i < foundAt.length; i++) {
      if (foundAt[i] >= least || !this.state.classes[truthClasses[i]]) continue;
      each(truthBoxes[4 * i] * step, truthBoxes[4 * i + 1] * step, truthBoxes[4 * i + 2] * step, truthBoxes[4 * i + 3] * step, 2,
        () => `${this.data.classes[truthClasses[i]]}, annotated` +
          (foundAt[i] >= 0 ? `, found only from score ${foundAt[i].toFixed(3)} down` : ", found at no score"));
    }
  }

  // The smallest box at a point of the canvas, or null.
  at(px, py) {
    const { scale, x, y } = this.view;
    const mx = x + px / scale, my = y + py / scale, slack = 3 / scale;
    let best = null, least = Infinity;
    this.visit((y0, x0, y1, x1, layer, text) => {
      if (mx < x0 - slack || mx > x1 + slack || my < y0 - slack || my > y1 + slack) return;
      const area = (y1 - y0) * (x1 - x0);
      if (area < least) {
        least = area;
        best = { box: [y0, x0, y1, x1], text };
      }
    });
    return best && { box: best.box, text: best.text() };
  }

  // Marks a box, or none.
  point(mark) {
    this.mark = mark;
    this.redraw();
  }

  // Steps to the next (1) or previous (-1) box of those shown, best score first.
  walk(direction) {
    const all = [];
    this.visit((y0, x0, y1, x1, layer, text) => all.push({ box: [y0, x0, y1, x1], text }));
    if (!all.length) {
      this.status.textContent = "No box is shown.";
      return;
    }
    const here = this.mark ? all.findIndex(({ box }) => box.every((side, k) => side === this.mark.box[k])) : -1;
    const next = here < 0 ? (direction > 0 ? 0 : all.length - 1) : (here + direction + all.length) % all.length;
    this.goTo(all[next].box, `${next + 1} of ${all.length}: ${all[next].text()}`);
  }

  // ---- drawing ----

  redraw() {
    if (this.pending || !this.near) return;
    this.pending = requestAnimationFrame(() => {
      this.pending = 0;
      this.draw();
    });
  }

  draw() {
    const dense = window.devicePixelRatio || 1;
    const width = Math.round(this.width * dense), height = Math.round(this.height * dense);
    if (!width || !height) return;
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    const context = this.canvas.getContext("2d");
    context.setTransform(dense, 0, 0, dense, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    this.drawPictures(context, dense);
    this.drawBoxes(context);
    this.drawMark(context);
  }

  drawPictures(context, dense) {
    const { scale, x, y } = this.view;
    const { mosaic } = this;
    if (!this.picture.complete || !this.picture.naturalWidth) return;
    // The coarsest level that is fine enough for this screen, else the finest there is.
    const fine = mosaic.levels.findIndex((level) => level.width / mosaic.width >= scale * dense * 0.9);
    const chosen = fine < 0 ? mosaic.levels.length - 1 : fine;
    const finest = mosaic.levels[mosaic.levels.length - 1];
    // Beyond three screen pixels to one of the picture, show the pixels as they are.
    context.imageSmoothingEnabled = (scale * dense * mosaic.width) / finest.width < 3;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.picture, -x * scale, -y * scale, mosaic.width * scale, mosaic.height * scale);
    if (chosen === 0) return;
    const level = mosaic.levels[chosen];
    const wide = mosaic.width / level.width, tall = mosaic.height / level.height; // mosaic px a level px
    const columns = Math.ceil(level.width / level.tile), rows = Math.ceil(level.height / level.tile);
    const first = (start, unit) => Math.max(0, Math.floor(start / unit / level.tile));
    const last = (end, unit, count) => Math.min(count - 1, Math.floor(end / unit / level.tile));
    for (let row = first(y, tall); row <= last(y + this.height / scale, tall, rows); row++) {
      for (let column = first(x, wide); column <= last(x + this.width / scale, wide, columns); column++) {
        const tile = this.tile(chosen, row * columns + column);
        if (!tile.complete || !tile.naturalWidth) continue;
        const left = column * level.tile * wide, top = row * level.tile * tall;
        // Half a screen pixel of overlap hides the seams between tiles.
        context.drawImage(tile, (left - x) * scale, (top - y) * scale,
          tile.naturalWidth * wide * scale + 0.5, tile.naturalHeight * tall * scale + 0.5);
      }
    }
  }

  tile(level, index) {
    const key = `${level}/${index}`;
    let tile = this.tiles.get(key);
    if (tile) this.tiles.delete(key); // put back below, as the one used last
    else {
      tile = new Image();
      tile.src = "data:image/jpeg;base64," + this.mosaic.levels[level].tiles[index];
      tile.decode().then(() => this.redraw(), () => {});
    }
    this.tiles.set(key, tile);
    if (this.tiles.size > MOST_TILES) this.tiles.delete(this.tiles.keys().next().value);
    return tile;
  }

  drawBoxes(context) {
    const { scale, x, y } = this.view;
    const styles = this.mosaic.hits ? this.data.outcomes : this.data.styles;
    const layers = styles.map(() => []);
    let outlines = 0, sides = 0;
    this.visit((y0, x0, y1, x1, layer) => {
      const left = (x0 - x) * scale, top = (y0 - y) * scale, right = (x1 - x) * scale, bottom = (y1 - y) * scale;
      if (right < 0 || bottom < 0 || left > this.width || top > this.height) return;
      layers[layer].push(left, top, right - left, bottom - top);
      if (Math.max(right - left, bottom - top) < DOT_BELOW_PX) return;
      outlines++;
      sides += (right - left + bottom - top) / 2;
    });
    const dots = outlines > MOST_OUTLINES;
    // Among small boxes thick lines would hide what is in them.
    const line = outlines && sides / outlines < 20 ? 1.2 : 2;
    layers.forEach((flat, layer) => {
      if (!flat.length) return;
      const path = new Path2D();
      context.fillStyle = styles[layer].colour;
      for (let k = 0; k < flat.length; k += 4) {
        const [left, top, width, height] = [flat[k], flat[k + 1], flat[k + 2], flat[k + 3]];
        if (dots || Math.max(width, height) < DOT_BELOW_PX) context.fillRect(left + width / 2 - 1, top + height / 2 - 1, 2, 2);
        else path.rect(left, top, width, height);
      }
      context.lineJoin = "round";
      context.setLineDash([]);
      context.lineWidth = 2 * line;
      context.strokeStyle = "rgba(0,0,0,.55)";
      context.stroke(path);
      context.setLineDash(styles[layer].dash);
      context.lineWidth = line;
      context.strokeStyle = styles[layer].colour;
      context.stroke(path);
      context.setLineDash([]);
    });
  }

  drawMark(context) {
    this.tip.hidden = !this.mark;
    if (!this.mark) return;
    const { scale, x, y } = this.view;
    const [y0, x0, y1, x1] = this.mark.box;
    const left = (x0 - x) * scale - 4, top = (y0 - y) * scale - 4;
    const width = (x1 - x0) * scale + 8, height = (y1 - y0) * scale + 8;
    for (const [colour, line] of [["#000", 6], ["#fff", 3]]) {
      context.strokeStyle = colour;
      context.lineWidth = line;
      context.strokeRect(left, top, width, height);
    }
    this.tip.textContent = `${this.mark.text} · x ${Math.round((x0 + x1) / 2)}, y ${Math.round((y0 + y1) / 2)}`;
    const above = top - this.tip.offsetHeight - 6;
    const within = (value, room) => Math.min(Math.max(value, 4), Math.max(4, room));
    this.tip.style.left = `${within(left, this.width - this.tip.offsetWidth - 4)}px`;
    this.tip.style.top = `${within(above >= 0 ? above : top + height + 6, this.height - this.tip.offsetHeight - 4)}px`;
  }

  // ---- hands ----

  listen() {
    const { frame } = this;
    const place = (event) => {
      const edge = this.canvas.getBoundingClientRect();
      return [event.clientX - edge.left, event.clientY - edge.top];
    };
    frame.addEventListener("wheel", (event) => {
      // A page of many maps must still scroll: the wheel zooms a map that was clicked or focused, or with Ctrl (as a pinch on a pad).
      if (!event.ctrlKey && document.activeElement !== frame) {
        this.root.classList.add("hint");
        return;
      }
      event.preventDefault();
      const lines = event.deltaMode === 1 ? 16 : 1; // Firefox counts in lines
      this.zoom(Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.002)), ...place(event));
    }, { passive: false });
    frame.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const across = this.width * 0.15, down = this.height * 0.15;
      const action = {
        "+": () => this.zoom(1.5), "=": () => this.zoom(1.5), "-": () => this.zoom(1 / 1.5), _: () => this.zoom(1 / 1.5),
        0: () => this.fit(), ArrowLeft: () => this.pan(-across, 0), ArrowRight: () => this.pan(across, 0),
        ArrowUp: () => this.pan(0, -down), ArrowDown: () => this.pan(0, down),
        n: () => this.walk(1), p: () => this.walk(-1), Escape: () => this.point(null),
      }[event.key];
      if (!action) return;
      event.preventDefault();
      action();
    });
    frame.addEventListener("focus", () => this.root.classList.remove("hint"));
    frame.addEventListener("dblclick", (event) => this.zoom(2, ...place(event)));
    const fingers = new Map();
    const spread = () => {
      const [a, b] = Array.from(fingers.values());
      return { middle: [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2], apart: Math.hypot(a[0] - b[0], a[1] - b[1]) || 1 };
    };
    frame.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      frame.focus({ preventScroll: true });
      fingers.set(event.pointerId, place(event));
      frame.setPointerCapture(event.pointerId);
    });
    frame.addEventListener("pointermove", (event) => {
      const now = place(event);
      const before = fingers.get(event.pointerId);
      if (!before) {
        if (event.pointerType === "mouse") this.point(this.at(...now));
        return;
      }
      if (fingers.size === 2) {
        const was = spread();
        fingers.set(event.pointerId, now);
        const is = spread();
        this.pan(was.middle[0] - is.middle[0], was.middle[1] - is.middle[1]);
        this.zoom(is.apart / was.apart, ...is.middle);
      } else {
        fingers.set(event.pointerId, now);
        this.pan(before[0] - now[0], before[1] - now[1]);
      }
    });
    for (const kind of ["pointerup", "pointercancel"]) {
      frame.addEventListener(kind, (event) => {
        if (kind === "pointerup" && event.pointerType !== "mouse" && fingers.size === 1) this.point(this.at(...place(event)));
        fingers.delete(event.pointerId);
      });
    }
    frame.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && this.point(null));
    this.toggles.forEach((toggle) => toggle.addEventListener("change", () => this.redraw()));
    const buttons = { in: () => this.zoom(1.5), out: () => this.zoom(1 / 1.5), fit: () => this.fit(), next: () => this.walk(1) };
    for (const button of this.root.querySelectorAll("[data-do]")) button.addEventListener("click", buttons[button.dataset.do]);
  }
}
