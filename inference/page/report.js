// The report's live numbers: one threshold, from which counts, precision and recall follow as the page's author computed them.
// Plain ES2020, inlined at render after map.js; reads the JSON block #data. Text from data is only ever set as textContent.

(() => {
  "use strict";

  // ---- data ----

  const data = JSON.parse(document.getElementById("data").textContent);

  function decode(text, kind) {
    const characters = atob(text);
    const bytes = new Uint8Array(characters.length);
    for (let i = 0; i < characters.length; i++) bytes[i] = characters.charCodeAt(i);
    return new kind(bytes.buffer); // little-endian, as every machine that runs a browser
  }

  for (const mosaic of data.mosaics) {
    mosaic.scores = decode(mosaic.scores, Float32Array); // [N], best first
    mosaic.classes = decode(mosaic.classes, Uint16Array); // [N], from 0
    mosaic.boxes = decode(mosaic.boxes, Uint16Array); // [N * 4], yxyx in 1/65,535 of the longer side
    if (!mosaic.hits) continue;
    mosaic.hits = decode(mosaic.hits, Uint8Array); // [N], bit i: found an object at data.ious[i]
    mosaic.foundAt = decode(mosaic.found_at, Float32Array); // [M], score from which the object is found, -1 never
    mosaic.truthClasses = decode(mosaic.truth_classes, Uint16Array);
    mosaic.truthBoxes = decode(mosaic.truth_boxes, Uint16Array);
  }

  // `cut` is the threshold as a float32, as scores are: the same comparison as numpy's.
  const state = { threshold: data.threshold, cut: Math.fround(data.threshold), classes: data.classes.map(() => true) };

  // Whether the page holds all detections from the threshold up; else only the numbers written into it are known.
  const known = () => data.complete || state.cut >= Math.fround(data.lowest);

  // ---- numbers ----

  // Per mosaic and class: detections that count, and those of them that found an object at each IoU. [mosaic][class]
  function tally() {
    return data.mosaics.map(({ scores, classes, hits }) => {
      const counted = new Array(data.classes.length).fill(0);
      const right = data.ious.map(() => new Array(data.classes.length).fill(0));
      for (let i = 0; i < scores.length && scores[i] >= state.cut; i++) {
        counted[classes[i]]++;
        if (hits) for (let k = 0; k < right.length; k++) right[k][classes[i]] += (hits[i] >> k) & 1;
      }
      return { counted, right };
    });
  }

  // Sums over mosaics (one, or all) and classes (one, all, or those shown). `iou` is an index into data.ious.
  function sums(tallies, mosaic, inClass, iou = 0) {
    const total = { found: 0, judged: 0, right: 0, truths: 0, annotated: false, ha: 0 };
    for (const m of mosaic === null ? tallies.keys() : [mosaic]) {
      const { counted, right } = tallies[m];
      const { hits, truths, ha } = data.mosaics[m];
      total.ha = ha === null ? NaN : total.ha + ha;
      total.annotated = total.annotated || Boolean(hits);
      counted.forEach((number, c) => {
        if (!inClass(c)) return;
        total.found += number;
        if (!hits) return;
        total.judged += number;
        total.right += right[iou][c];
        total.truths += truths[c];
      });
    }
    return total;
  }

  const rounded = (value, digits) => Math.floor(value * 10 ** digits + 0.5) / 10 ** digits;
  const fixed = (value, digits) =>
    value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  const number = (value) => fixed(value, 0);
  const percent = (value) => (Number.isFinite(value) ? `${fixed(rounded(100 * value, 0), 0)}\u00a0%` : "–");
  const ratio = (value) => (Number.isFinite(value) ? fixed(rounded(value, 3), 3) : "–");
  const size = (value) => {
    if (!value) return "0";
    const digits = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value))));
    return fixed(rounded(value, digits), digits);
  };
  const signed = (value, of) => {
    if (!value) return "±0";
    const sign = value > 0 ? "+" : "−";
    const share = of ? ` (${sign}${fixed(Math.abs(rounded((100 * value) / of, 1)), 1)}\u00a0%)` : "";
    return `${sign}${number(Math.abs(value))}${share}`;
  };
  const f1 = (s) => (2 * s.right) / (s.judged + s.truths);

  const kinds = {
    found: (s) => number(s.found),
    judged: (s) => number(s.judged),
    error: (s) => (s.annotated ? signed(s.judged - s.truths, s.truths) : "–"),
    density: (s) => (s.ha > 0 ? size(s.found / s.ha) : "–"),
    right: (s) => number(s.right),
    false: (s) => number(s.judged - s.right),
    missed: (s) => number(s.truths - s.right),
    precision: (s) => percent(s.right / s.judged),
    recall: (s) => percent(s.right / s.truths),
    precision_ratio: (s) => ratio(s.right / s.judged),
    recall_ratio: (s) => ratio(s.right / s.truths),
    f1: (s) => ratio(f1(s)),
  };
  const meters = { precision: (s) => s.right / s.judged, recall: (s) => s.right / s.truths, f1 };

  // Elements that follow the threshold: data-live="KIND MOSAIC CLASS IOU", a dash for all.
  const index = (text) => (text === undefined || text === "-" ? null : Number(text));
  const live = Array.from(document.querySelectorAll("[data-live]"), (element) => {
    const [kind, mosaic, label, iou] = element.dataset.live.split(" ");
    return { element, kind, mosaic: index(mosaic), label: index(label), iou: index(iou) ?? 0, still: element.textContent };
  });
  const points = Array.from(document.querySelectorAll("[data-point]"), (element) => {
    const [label, iou] = element.dataset.point.split(" ");
    return { element, label: index(label), iou: Number(iou) };
  });
  const bars = Array.from(document.querySelectorAll("[data-bin]"));
  const rules = Array.from(document.querySelectorAll("[data-rule]"));

  function update() {
    const tallies = known() ? tally() : null;
    for (const { element, kind, mosaic, label, iou, still } of live) {
      if (!tallies) element.textContent = still;
      else element.textContent = kinds[kind](sums(tallies, mosaic, (c) => label === null || c === label, iou));
    }
    document.body.classList.toggle("moved", state.threshold !== data.threshold);
    for (const element of document.querySelectorAll(".at")) element.textContent = String(Number(state.threshold.toPrecision(3)));
    if (tallies) {
      updateCharts(tallies);
      updateSummary(tallies);
    } else {
      summary.textContent = `below ${data.lowest.toFixed(3)} the page knows only the numbers written in it`;
    }
    maps.forEach((map) => map && map.redraw());
    updateLayers();
  }

  // Chart units as in inference/charts.py.
  const chartX = (value) => 54 + value * 412;
  const chartY = (value) => 300 - value * 286;

  function updateCharts(tallies) {
    for (const { element, label, iou } of points) {
      const s = sums(tallies, null, (c) => label === null || c === label, iou);
      const [recall, precision] = [s.right / s.truths, s.right / s.judged];
      element.style.display = Number.isFinite(recall) && Number.isFinite(precision) ? "" : "none";
      if (!Number.isFinite(recall) || !Number.isFinite(precision)) continue;
      element.setAttribute("cx", chartX(recall));
      element.setAttribute("cy", chartY(precision));
    }
    for (const element of document.querySelectorAll("[data-meter]")) {
      const value = meters[element.dataset.meter](sums(tallies, null, () => true));
      element.style.width = `${Number.isFinite(value) ? 100 * value : 0}%`;
    }
    for (const rule of rules) {
      rule.setAttribute("x1", chartX(Math.min(Math.max(state.threshold, 0), 1)));
      rule.setAttribute("x2", chartX(Math.min(Math.max(state.threshold, 0), 1)));
    }
    // The histogram: from the bin that holds the threshold only a part counts.
    const counted = new Array(bars.length).fill(0);
    for (const { scores } of data.mosaics) {
      for (let i = 0; i < scores.length && scores[i] >= state.cut; i++) {
        counted[Math.min(bars.length - 1, Math.floor(scores[i] * bars.length))]++;
      }
    }
    bars.forEach((bar, k) => {
      const height = (286 * Math.min(counted[k], Number(bar.dataset.bin))) / Number(bar.dataset.top);
      bar.setAttribute("y", 300 - height);
      bar.setAttribute("height", height);
    });
  }

  const summary = document.getElementById("summary");
  function updateSummary(tallies) {
    const s = sums(tallies, null, (c) => state.classes[c]);
    const some = state.classes.every(Boolean) ? "" : " of the classes shown";
    summary.textContent = `${number(s.found)} counted${some}` +
      (s.annotated ? ` · precision ${kinds.precision(s)} · recall ${kinds.recall(s)} · F1\u00a0${kinds.f1(s)}` : "");
  }

  // How many boxes each layer of each map has, beside its tick.
  function updateLayers() {
    maps.forEach((map) => {
      if (!map) return;
      const { scores, classes, hits, foundAt, truthClasses } = map.mosaic;
      const counts = map.toggles.map(() => 0);
      for (let i = 0; i < scores.length && scores[i] >= state.cut; i++) {
        if (state.classes[classes[i]]) counts[map.layerOf(i)]++;
      }
      if (hits) foundAt.forEach((score, i) => { counts[2] += score < state.cut && state.classes[truthClasses[i]] ? 1 : 0; });
      map.root.querySelectorAll(".layer-count").forEach((element, k) => {
        if (known()) element.textContent = number(counts[k]);
      });
    });
  }

  // ---- controls ----

  const slider = document.getElementById("threshold");
  const typed = document.getElementById("threshold-number");

  function setThreshold(value) {
    state.threshold = value;
    state.cut = Math.fround(value);
    update();
  }

  slider.addEventListener("input", () => {
    typed.value = Number(slider.value).toFixed(3);
    setThreshold(Number(slider.value));
  });
  typed.addEventListener("input", () => {
    const value = Number(typed.value);
    if (typed.value === "" || !(value >= Number(slider.min) && value <= 1)) return; // the browser marks it as out of range
    slider.value = typed.value;
    setThreshold(value);
  });
  document.getElementById("reset").addEventListener("click", () => {
    slider.value = data.threshold;
    typed.value = data.threshold.toFixed(3);
    setThreshold(data.threshold); // the very number, not the slider's nearest step
  });
  document.querySelectorAll("input[data-class]").forEach((box) => {
    box.addEventListener("change", () => {
      state.classes[Number(box.dataset.class)] = box.checked;
      update();
    });
  });

  const controls = document.getElementById("controls");
  controls.hidden = false;
  // The controls stay at the top of the window: whatever is jumped to must stop below them.
  new ResizeObserver(() => {
    document.documentElement.style.scrollPaddingTop = `${controls.offsetHeight + 12}px`;
  }).observe(controls);
  document.body.classList.add("scripted");
  const maps = data.mosaics.map((mosaic, m) =>
    mosaic.levels ? new SurveyMap(document.querySelector(`[data-map="${m}"]`), mosaic, state, data) : null);

  document.querySelectorAll("a[data-jump]").forEach((link) => {
    link.addEventListener("click", (event) => {
      const map = maps[Number(link.dataset.jump)];
      if (!map) return;
      event.preventDefault();
      map.root.scrollIntoView({ block: "start" });
      map.frame.focus({ preventScroll: true });
      map.goTo(link.dataset.box.split(" ").map(Number), link.dataset.text);
    });
  });
  // Paper has no scrolling: draw also the maps that are far away.
  window.addEventListener("beforeprint", () => maps.forEach((map) => map && map.draw()));

  update();
})();
