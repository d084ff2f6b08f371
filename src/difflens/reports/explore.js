"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const element = (id) => document.getElementById(id);
  const SIDE = 256; // pixels of a canvas
  const OPAQUE = 0.6; // colours over a picture
  const STOPS = [[13, 8, 60], [84, 39, 143], [182, 55, 121], [251, 136, 97], [252, 253, 191]]; // dark to light
  const state = {
    block: data.start[0],
    level: data.start[1],
    picture: 0,
    u: 0.5, // position in the picture, from 0 to 1
    v: 0.5,
    held: false,
    mouse: matchMedia("(hover: hover)").matches,
    background: "picture",
  };
  const views = []; // canvas, image and readout of each picture
  const loaded = new Map(); // vectors by place, unpacked when they are first shown
  let queued = false;

  function colour(share) {
    const at = Math.min(Math.max(share, 0), 1) * (STOPS.length - 1);
    const k = Math.min(Math.floor(at), STOPS.length - 2);
    return STOPS[k].map((value, channel) => value + (at - k) * (STOPS[k + 1][channel] - value));
  }

  async function unpack(text, Kind) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
    return new Kind(await new Response(stream).arrayBuffer());
  }

  function vectorsOf(block, level) {
    const key = `${block} ${level}`;
    if (!loaded.has(key)) {
      const place = data.places[block][level];
      loaded.set(key, Promise.all([unpack(place.codes, Int8Array), unpack(place.offsets, Int16Array)])
        .then(([codes, offsets]) => ({ ...place, codes, offsets: Float32Array.from(offsets, (value) => value * place.step) })));
    }
    return loaded.get(key);
  }

  function cellOf(side) {
    return { x: Math.min(Math.floor(state.u * side), side - 1), y: Math.min(Math.floor(state.v * side), side - 1) };
  }

  // cos = square + offset_i + offset_j + scale^2 codes_i . codes_j
  function similarities(place) {
    const { side, dims, codes, offsets } = place;
    const count = offsets.length;
    const { x, y } = cellOf(side);
    const query = (state.picture * side + y) * side + x;
    const sums = new Float32Array(count);
    for (let k = 0; k < dims; k++) {
      const factor = codes[k * count + query];
      if (factor === 0) continue;
      for (let i = 0, at = k * count; i < count; i++, at++) sums[i] += factor * codes[at];
    }
    const factor = place.scale * place.scale, first = place.square + offsets[query];
    for (let i = 0; i < count; i++) sums[i] = first + offsets[i] + factor * sums[i];
    return sums;
  }

  // quantiles of values, one of which may be left out: a position's similarity to itself
  function range(values, low, high, but = -1) {
    const others = values.filter((_, i) => i !== but);
    const sorted = Float32Array.from(others.length ? others : values).sort();
    const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
    return [at(low), at(high)];
  }

  // the first three principal components as red, green and blue, over all pictures
  function components(place) {
    if (!place.rgb) {
      const count = place.offsets.length;
      place.rgb = new Uint8ClampedArray(4 * count).fill(255);
      for (let k = 0; k < 3; k++) {
        const row = k < place.dims ? place.codes.subarray(k * count, (k + 1) * count) : new Int8Array(count);
        const [low, high] = range(row, 0.01, 0.99);
        for (let i = 0; i < count; i++) place.rgb[4 * i + k] = high > low ? (255 * (row[i] - low)) / (high - low) : 128;
      }
    }
    return place.rgb;
  }

  const small = document.createElement("canvas");
  function paint(context, pixels, side, alpha) {
    small.width = small.height = side;
    small.getContext("2d").putImageData(new ImageData(pixels, side, side), 0, 0);
    context.globalAlpha = alpha;
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, SIDE, SIDE);
    context.globalAlpha = 1;
  }

  function ring(context, cell, side, width) {
    const x = ((cell.x + 0.5) * SIDE) / side, y = ((cell.y + 0.5) * SIDE) / side;
    for (const [line, ink] of [[width + 2, "#000"], [width, "#fff"]]) {
      context.beginPath();
      context.arc(x, y, 7, 0, 2 * Math.PI);
      context.lineWidth = line;
      context.strokeStyle = ink;
      context.stroke();
    }
  }

  async function draw() {
    queued = false;
    const { block, level } = state;
    const place = await vectorsOf(block, level);
    if (block !== state.block || level !== state.level) return; // a later choice draws itself
    const { side } = place, cells = side * side;
    const values = similarities(place);
    const here = cellOf(side);
    const [low, high] = range(values, 0.01, 0.995, state.picture * cells + here.y * side + here.x);
    const span = Math.max(high - low, 1e-6);
    views.forEach(({ canvas, image, readout }, number) => {
      const context = canvas.getContext("2d");
      const heat = new Uint8ClampedArray(4 * cells).fill(255);
      let best = 0;
      for (let i = 0; i < cells; i++) {
        const value = values[number * cells + i];
        heat.set(colour((value - low) / span), 4 * i);
        if (value > values[number * cells + best]) best = i;
      }
      context.clearRect(0, 0, SIDE, SIDE);
      if (state.background === "picture") {
        context.imageSmoothingEnabled = true;
        context.filter = "grayscale(1)"; // colours are for similarity
        context.drawImage(image, 0, 0, SIDE, SIDE);
        context.filter = "none";
      } else if (state.background === "components") {
        paint(context, components(place).slice(4 * number * cells, 4 * (number + 1) * cells), side, 1);
      }
      paint(context, heat, side, state.background === "nothing" ? 1 : OPAQUE);
      const asked = number === state.picture;
      ring(context, asked ? here : { x: best % side, y: Math.floor(best / side) }, side, asked ? 3 : 1.5);
      readout.textContent = asked ? "chosen" : values[number * cells + best].toFixed(2);
    });
    element("low").textContent = `\u2264 ${low.toFixed(2)}`;
    element("high").textContent = `\u2265 ${high.toFixed(2)}`;
    showScale("colours", state.background === "nothing" ? 1 : OPAQUE);
    const { index, part } = data.blocks[block], { t, logSnr } = data.levels[level];
    element("block-value").textContent = `${index}, ${part}, ${side} × ${side}`;
    element("level-value").textContent = `t = ${t}, log-SNR ${logSnr}`;
    element("block").setAttribute("aria-valuetext", `block ${index}, ${part}`);
    element("level").setAttribute("aria-valuetext", `t = ${t}`);
    const { x, y } = here;
    const how = state.held ? ": held; click again or press Escape to release" : state.mouse ? ": click to hold" : "";
    element("status").textContent = `Picture ${state.picture + 1}, column ${x + 1}, row ${y + 1}${how}.`;
    element("agreement").textContent =
      `Here, 95 % of positions order all others as exact cosines do, with a rank correlation of ${place.agreement.toFixed(3)} or more.`;
    document.body.classList.toggle("pinned", state.held);
    for (const button of element("heat").querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.block) === block && Number(button.dataset.level) === level && !button.disabled));
    }
    document.body.dataset.drawn = `${block} ${level} ${state.picture} ${x} ${y} ${state.background}`;
  }

  // the colours as they are over a middle grey
  function showScale(name, opaque) {
    const stops = STOPS.map((stop) => `rgb(${stop.map((value) => Math.round(opaque * value + (1 - opaque) * 128))})`);
    element(name).style.background = `linear-gradient(to right, ${stops})`;
  }

  function redraw() {
    if (!queued) {
      queued = true;
      requestAnimationFrame(() => draw().catch((error) => { element("status").textContent = `This browser cannot show the page: ${error.message}`; }));
    }
  }

  function point(number, event) {
    const box = views[number].canvas.getBoundingClientRect();
    const share = (value) => Math.min(Math.max(value, 0), 0.9999);
    Object.assign(state, { picture: number, u: share((event.clientX - box.left) / box.width), v: share((event.clientY - box.top) / box.height) });
    redraw();
  }

  function place(block, level) {
    Object.assign(state, { block, level });
    element("block").value = block;
    element("level").value = level;
    redraw();
  }

  function addPicture({ name, src }, number) {
    const figure = document.createElement("figure"), caption = document.createElement("figcaption");
    const canvas = document.createElement("canvas"), image = new Image();
    const title = document.createElement("span"), readout = document.createElement("span");
    canvas.width = canvas.height = SIDE;
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-label", `Picture ${number + 1}, ${name}: arrow keys move the position`);
    title.textContent = title.title = name;
    image.src = src;
    image.onload = redraw;
    caption.append(title, readout);
    figure.append(canvas, caption);
    element("pictures").append(figure);
    views.push({ canvas, image, readout });
    canvas.addEventListener("pointermove", (event) => { if (!state.held) point(number, event); });
    canvas.addEventListener("pointerdown", (event) => {
      state.mouse = event.pointerType === "mouse";
      if (!state.mouse) { // a tap chooses; nothing hovers, so nothing need be held
        state.held = false;
        point(number, event);
        return;
      }
      state.held = !state.held;
      point(number, event);
    });
    canvas.addEventListener("focus", () => {
      if (!state.held && canvas.matches(":focus-visible")) { state.picture = number; redraw(); }
    });
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (step) {
        const { side } = data.places[state.block][state.level];
        const cell = cellOf(side);
        const moved = (value, by) => (Math.min(Math.max(value + by, 0), side - 1) + 0.5) / side;
        Object.assign(state, { picture: number, u: moved(cell.x, step[0]), v: moved(cell.y, step[1]) });
      } else if (event.key === "Enter" || event.key === " ") {
        state.held = !state.held;
      } else {
        return;
      }
      event.preventDefault();
      redraw();
    });
  }

  function addHeatMap(sweep) {
    const grid = element("heat");
    const values = sweep.values.flat().filter((value) => value !== null);
    const low = Math.min(...values), high = Math.max(...values), span = Math.max(high - low, 1e-6);
    element("least").textContent = `${low} %`;
    element("most").textContent = `${high} %`;
    grid.style.gridTemplateColumns = `minmax(2rem, 4rem) repeat(${sweep.blocks.length}, minmax(0, 1fr))`;
    const label = (text) => { const span = document.createElement("span"); span.textContent = text; grid.append(span); };
    sweep.levels.forEach((t, row) => {
      label(t);
      sweep.blocks.forEach((block, column) => {
        const button = document.createElement("button"), value = sweep.values[row][column];
        const [level, index] = [sweep.rows[row], sweep.columns[column]];
        const share = value === null ? 1 : (value - low) / span;
        button.style.backgroundColor = value === null ? "transparent" : `rgb(${colour(share).map(Math.round)})`;
        button.style.color = share > 0.6 ? "#000" : "#fff";
        button.textContent = value === null || sweep.blocks.length > 14 ? "" : value.toFixed(0);
        button.disabled = level === null || index === null;
        button.title = `block ${block}, t = ${t}: ${value === null ? "not measured" : `${value} %`}`;
        button.setAttribute("aria-label", button.title);
        if (!button.disabled) Object.assign(button.dataset, { level, block: index });
        button.addEventListener("click", () => place(index, level));
        grid.append(button);
      });
    });
    label("t / block");
    sweep.blocks.forEach((block) => label(String(block)));
    element("sweep").hidden = false;
  }

  data.pictures.forEach(addPicture);
  if (data.sweep) addHeatMap(data.sweep);
  element("block").max = data.blocks.length - 1;
  element("level").max = data.levels.length - 1;
  showScale("accuracies", 1);
  element("block").addEventListener("input", (event) => place(Number(event.target.value), state.level));
  element("level").addEventListener("input", (event) => place(state.block, Number(event.target.value)));
  for (const choice of document.querySelectorAll("input[name=background]")) {
    choice.addEventListener("change", () => { state.background = choice.value; redraw(); });
  }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") { state.held = false; redraw(); } });
  place(state.block, state.level);
})();
