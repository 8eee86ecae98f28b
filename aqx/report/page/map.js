// The map of all candidates. Plotly draws axes, zoom and colour bar; the candidates are one picture under it, painted
// here, as hundreds of thousands of marks would each be an element of the page.
const atlas = {names: [], x: null, y: null, predicted: null, trials: new Map(), colour: "prediction", hovered: -1};
const CELLS = 256; // of a grid, by which the candidate nearest to the pointer is found
const FAR = 14; // pixels

function scoreOf(row) {
  const results = (atlas.trials.get(row) || []).map(t => t.objective).filter(isNumber);
  return results.length ? results.reduce((a, b) => a + b) / results.length : NaN;
}

async function loadMap() {
  const [names, places, predictions] = await Promise.all(["names", "places", "predictions"].map(unpacked));
  const {count: n, low, high} = report.map, places16 = new Uint16Array(places);
  atlas.names = n ? new TextDecoder().decode(names).split("\n") : [];
  atlas.x = places16.subarray(0, n);
  atlas.y = places16.subarray(n);
  // 0: no prediction; else from the lowest, 1, to the highest, 255.
  atlas.predicted = Float32Array.from(new Uint8Array(predictions), v => v ? low + (v - 1) / 254 * (high - low) : NaN);
  indexCells();
  collectTrials();
}

function collectTrials() {
  atlas.trials.clear();
  for (const trial of report.trials)
    if (trial.row >= 0 && !["confirm", "compare"].includes(trial.purpose)) atlas.trials.set(trial.row, [...(atlas.trials.get(trial.row) || []), trial]);
  const scores = [...atlas.trials.keys()].map(scoreOf).filter(isNumber);
  const ends = [quantile(scores, sign > 0 ? 0.1 : 0.9), quantile(scores, sign > 0 ? 1 : 0)];
  atlas.worst = ends[0]; atlas.best = ends[1] === ends[0] ? ends[0] + sign : ends[1];
}

function indexCells() {
  const n = atlas.x.length, cell = i => (atlas.y[i] >> 8) * CELLS + (atlas.x[i] >> 8);
  atlas.first = new Uint32Array(CELLS * CELLS + 1);
  for (let i = 0; i < n; i++) atlas.first[cell(i) + 1]++;
  for (let c = 0; c < CELLS * CELLS; c++) atlas.first[c + 1] += atlas.first[c];
  const next = atlas.first.slice();
  atlas.members = new Uint32Array(n);
  for (let i = 0; i < n; i++) atlas.members[next[cell(i)]++] = i;
}

const MARGIN = {l: 8, r: 78, t: 8, b: 8};
function view() {
  const element = byId("map"), {xaxis, yaxis} = element.layout;
  const width = Math.max(element.clientWidth - MARGIN.l - MARGIN.r, 10), height = Math.max(element.clientHeight - MARGIN.t - MARGIN.b, 10);
  const [x0, x1] = xaxis.range, [y0, y1] = yaxis.range;
  return {width, height, x0, x1, y0, y1, sx: width / (x1 - x0), sy: height / (y1 - y0)};
}

const share = value => (value - atlas.worst) / (atlas.best - atlas.worst);

async function painted() {
  const v = view(), scale = Math.min(window.devicePixelRatio || 1, 2);
  const canvas = make("canvas", {width: Math.round(v.width * scale), height: Math.round(v.height * scale)});
  const context = canvas.getContext("2d"), w = canvas.width, h = canvas.height;
  const image = context.createImageData(w, h), pixels = image.data, n = atlas.x.length;
  const dust = colour("dust").split(",").map(Number), zoom = 65535 / (v.x1 - v.x0);
  // Fewer candidates in view get larger dots.
  const size = Math.max(1, Math.min(Math.round(scale * Math.sqrt(w * h / 40 / Math.max(n / (zoom * zoom), 1))), Math.round(5 * scale)));
  const weight = Math.min(0.85, 0.25 + 0.15 * size);
  const table = Array.from({length: 65}, (_, i) => viridis(i / 64));
  for (let i = 0; i < n; i++) {
    const left = Math.round((atlas.x[i] - v.x0) * v.sx * scale - size / 2), top = Math.round((v.y1 - atlas.y[i]) * v.sy * scale - size / 2);
    if (left < 0 || top < 0 || left + size > w || top + size > h) continue;
    const known = atlas.colour === "prediction" && atlas.predicted[i] === atlas.predicted[i];
    const [r, g, b] = known ? table[Math.round(64 * Math.min(Math.max(share(atlas.predicted[i]), 0), 1))] : dust;
    for (let dy = 0; dy < size; dy++) for (let dx = 0; dx < size; dx++) {
      const at = 4 * ((top + dy) * w + left + dx), a = pixels[at + 3] / 255, out = a + weight * (1 - a);
      pixels[at] = (r * weight + pixels[at] * a * (1 - weight)) / out;
      pixels[at + 1] = (g * weight + pixels[at + 1] * a * (1 - weight)) / out;
      pixels[at + 2] = (b * weight + pixels[at + 2] * a * (1 - weight)) / out;
      pixels[at + 3] = 255 * out;
    }
  }
  context.putImageData(image, 0, 0);
  const rows = [...atlas.trials.keys()].sort((a, b) => sign * ((scoreOf(a) || -sign * Infinity) - (scoreOf(b) || -sign * Infinity)));
  for (const row of rows) {
    const score = scoreOf(row);
    context.beginPath();
    context.arc((atlas.x[row] - v.x0) * v.sx * scale, (v.y1 - atlas.y[row]) * v.sy * scale, 5 * scale, 0, 7);
    context.fillStyle = isNumber(score) ? `rgb(${viridis(share(score))})` : colour("bad");
    context.fill();
    context.lineWidth = 1.4 * scale;
    context.strokeStyle = colour("ink");
    context.stroke();
  }
  const blob = await new Promise(done => canvas.toBlob(done)), old = atlas.picture;
  atlas.picture = URL.createObjectURL(blob);
  if (old) setTimeout(() => URL.revokeObjectURL(old), 5000); // while the next one takes its place
  return {source: atlas.picture, xref: "x", yref: "y", x: v.x0, y: v.y1, sizex: v.x1 - v.x0, sizey: v.y1 - v.y0,
    sizing: "stretch", layer: "below"};
}

const WHOLE = [-1200, 66735];
function mapLayout(ranges) {
  const axis = range => ({range, visible: false, showgrid: false, zeroline: false, automargin: false});
  return layout({margin: MARGIN, showlegend: false, hovermode: false, dragmode: isNarrow() ? false : "pan",
    xaxis: axis(ranges[0]), yaxis: axis(ranges[1])});
}

function markers() {
  const rows = [...byId("pinned").children].map(card => card.row), hovered = atlas.hovered >= 0 ? [atlas.hovered] : [];
  const all = [...rows, ...hovered];
  return {x: all.map(r => atlas.x[r]), y: all.map(r => atlas.y[r]), color: all.map((_, i) => colour(i < rows.length ? "found" : "ink"))};
}

// Away from the nearer edge, where there is no room for half of a name on either side.
function labelPlace(label) {
  const share = (atlas.x[label.row] - WHOLE[0]) / (WHOLE[1] - WHOLE[0]), room = isNarrow() ? 0.5 : 0.15;
  return share > 1 - room ? "top left" : share < room ? "top right" : "top center";
}

let mapBusy = false;
async function drawMap() {
  const element = byId("map"), old = element.layout;
  const ranges = old && old.xaxis ? [old.xaxis.range.slice(), old.yaxis.range.slice()] : [WHOLE.slice(), WHOLE.slice()];
  const m = markers();
  mapBusy = true;
  element.layout = old || mapLayout(ranges); // what `view` goes by
  const shown = mapLayout(ranges);
  shown.images = [await painted()];
  await Plotly.react(element, [
    {x: m.x, y: m.y, mode: "markers", hoverinfo: "skip",
      marker: {size: 15, symbol: "circle-open", color: m.color, line: {width: 2.5}}},
    {x: report.map.labels.map(l => atlas.x[l.row]), y: report.map.labels.map(l => atlas.y[l.row]), mode: "markers+text",
      text: report.map.labels.map(l => (l.found ? "◆ " : "") + chunked(l.name, 24)), textposition: report.map.labels.map(labelPlace), hoverinfo: "skip",
      textfont: {color: report.map.labels.map(l => colour(l.found ? "found" : "ink")), size: 11},
      marker: {size: 13, symbol: report.map.labels.map(l => l.found ? "diamond-open" : "square-open"),
        color: report.map.labels.map(l => colour(l.found ? "found" : "ink")), line: {width: 1.6}}},
    {x: [null], y: [null], mode: "markers", hoverinfo: "skip", marker: {
      color: [0], cmin: Math.min(atlas.worst, atlas.best), cmax: Math.max(atlas.worst, atlas.best), showscale: true,
      colorscale: COLORSCALE, reversescale: sign < 0, colorbar: {thickness: 12, len: 0.9, x: 1.01, outlinewidth: 0}}},
  ], shown, {...CONFIG, scrollZoom: !isNarrow(), modeBarButtonsToRemove: [...CONFIG.modeBarButtonsToRemove, "toImage"]});
  mapBusy = false;
}

function nearest(event) {
  const v = view(), box = byId("map").getBoundingClientRect();
  const px = event.clientX - box.left - MARGIN.l, py = event.clientY - box.top - MARGIN.t;
  if (px < 0 || py < 0 || px > v.width || py > v.height) return -1;
  const x = v.x0 + px / v.sx, y = v.y1 - py / v.sy, rx = FAR / v.sx, ry = FAR / v.sy;
  const clip = c => Math.min(Math.max(Math.floor(c / 256), 0), CELLS - 1);
  let found = -1, least = FAR * FAR;
  for (let cy = clip(y - ry); cy <= clip(y + ry); cy++) for (let cx = clip(x - rx); cx <= clip(x + rx); cx++) {
    const c = cy * CELLS + cx;
    for (let k = atlas.first[c]; k < atlas.first[c + 1]; k++) {
      const i = atlas.members[k], dx = (atlas.x[i] - x) * v.sx, dy = (atlas.y[i] - y) * v.sy;
      // A trained candidate wins over the dust around it.
      const d = (dx * dx + dy * dy) * (atlas.trials.has(i) ? 0.2 : 1);
      if (d < least) [found, least] = [i, d];
    }
  }
  return found;
}

function fillCard(card, row, pinned) {
  card.row = row;
  const trials = atlas.trials.get(row) || [], score = scoreOf(row), predicted = atlas.predicted[row];
  const lines = trials.length
    ? [`${report.objective} ${number(score) || "none"} in ${trials.length} ${trials.length > 1 ? "trials" : "trial"}`
      + ` (${[...new Set(trials.map(t => t.status))].join(", ")})`, ...trials.filter(t => t.reason).slice(0, 1).map(t => t.reason)]
    : ["not trained"];
  if (isNumber(predicted)) lines.push(`the surrogate expects ${number(predicted)}`);
  let mini = card.querySelector(".mini");
  if (!mini || !mini.data) mini = make("div", {className: "mini"});
  const close = pinned ? [make("button", {type: "button", ariaLabel: "Unpin", onclick: () => unpin(card)}, "×")] : [];
  card.replaceChildren(...close, make("h3", {}, atlas.names[row]), ...lines.map(line => make("p", {}, line)), mini);
  drawMini(mini, atlas.names[row]);
}

function hover(row) {
  if (row === atlas.hovered) return;
  atlas.hovered = row;
  const card = byId("card");
  if (row >= 0) fillCard(card, row, false);
  restyleMarkers();
}
function restyleMarkers() {
  const m = markers();
  Plotly.restyle("map", {x: [m.x], y: [m.y], "marker.color": [m.color]}, [0]);
}
function pin(row) {
  if ([...byId("pinned").children].some(card => card.row === row)) return;
  const card = make("div", {className: "card"});
  byId("pinned").prepend(card);
  fillCard(card, row, true);
  restyleMarkers();
}
function unpin(card) {
  Plotly.purge(card.querySelector(".mini"));
  card.remove();
  restyleMarkers();
}

function wireMap() {
  const element = byId("map");
  let waiting = false, pressed = null;
  element.addEventListener("pointermove", event => {
    if (waiting || event.buttons) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; hover(nearest(event)); });
  });
  // In the capture phase: Plotly's own layer keeps presses to itself. A press that moved was a drag.
  element.addEventListener("pointerdown", event => { pressed = [event.clientX, event.clientY]; }, true);
  window.addEventListener("pointerup", event => {
    if (!pressed || Math.hypot(event.clientX - pressed[0], event.clientY - pressed[1]) > 5) { pressed = null; return; }
    pressed = null;
    const row = nearest(event);
    if (row >= 0) { hover(row); pin(row); }
  }, true);
  let later = 0;
  element.on("plotly_relayout", () => {
    if (mapBusy) return;
    clearTimeout(later);
    later = setTimeout(drawMap, 60);
  });
  window.addEventListener("resize", () => { clearTimeout(later); later = setTimeout(drawMap, 200); });
  byId("map-colour").onchange = event => { atlas.colour = event.target.value; drawMap(); };
  byId("map-reset").onclick = () => {
    Object.assign(element.layout.xaxis, {range: WHOLE.slice()});
    Object.assign(element.layout.yaxis, {range: WHOLE.slice()});
    drawMap();
  };
  const find = byId("map-find");
  find.oninput = () => {
    const wanted = find.value.replace(/\s/g, "");
    const row = atlas.names.indexOf(wanted);
    if (row >= 0) { hover(row); pin(row); }
    const near = wanted.length > 2 ? atlas.names.filter(name => name.includes(wanted)).slice(0, 12) : [];
    byId("map-names").replaceChildren(...near.map(value => make("option", {value})));
    const among = wanted.length > 2 ? atlas.names.filter(name => name.includes(wanted)).length : 0;
    byId("map-found").textContent = !wanted || row >= 0 ? "" : among ? `${count(among)} names have this in them`
      : wanted.length > 2 ? "no candidate's name has this in it; each stands by the simplest name of its class" : "";
  };
}

part("map-section", () => report.map.count, drawMap);
