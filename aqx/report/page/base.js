"use strict";
// What every part of the page needs: the data, elements, numbers as text, colours of the theme, decompression.
const report = JSON.parse(document.getElementById("data").textContent);
const sign = report.sign;
const byId = id => document.getElementById(id);

// make("td", {className: "name"}, child or text, …); text never becomes markup.
function make(kind, properties = {}, ...children) {
  const element = Object.assign(document.createElement(kind), properties);
  element.append(...children.filter(child => child !== null && child !== undefined));
  return element;
}

const isNumber = value => typeof value === "number" && Number.isFinite(value);
function number(value, signed = false) {
  if (!isNumber(value)) return "";
  const size = Math.abs(value);
  const text = size !== 0 && (size >= 1e5 || size < 5e-5) ? value.toExponential(2) : value.toFixed(size >= 100 ? 1 : 4);
  return signed && value > 0 ? "+" + text : text;
}
// Names of functions break after their commas and brackets, and not within a word.
function breakable(name) {
  return String(name).split(/(?<=[,(])/).flatMap((piece, i) => i ? [document.createElement("wbr"), piece] : [piece]);
}
const count = value => value.toLocaleString("en");
function duration(seconds) {
  if (!isNumber(seconds)) return "";
  if (seconds < 100) return seconds.toFixed(1) + " s";
  return seconds < 6000 ? (seconds / 60).toFixed(1) + " min" : (seconds / 3600).toFixed(1) + " h";
}
// Plotly reads tags in its texts.
const plainText = text => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;");
const chunked = (text, length = 60) => plainText(text.length > length ? text.slice(0, length - 1) + "…" : text);
const colour = name => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

// Viridis, dark to bright: the brighter, the better.
const VIRIDIS = [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129],
  [92, 200, 99], [170, 220, 50], [253, 231, 37]];
function viridis(share) {
  const at = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1), low = Math.min(Math.floor(at), VIRIDIS.length - 2);
  return VIRIDIS[low].map((c, i) => Math.round(c + (at - low) * (VIRIDIS[low + 1][i] - c)));
}
const COLORSCALE = VIRIDIS.map((c, i) => [i / (VIRIDIS.length - 1), `rgb(${c})`]);
// Okabe and Ito's colours, which people who confuse red and green can tell apart.
const LINES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"];

function quantile(values, share) {
  const sorted = values.filter(isNumber).sort((a, b) => a - b);
  if (!sorted.length) return NaN;
  const at = share * (sorted.length - 1), low = Math.floor(at), high = Math.min(low + 1, sorted.length - 1);
  return sorted[low] + (at - low) * (sorted[high] - sorted[low]);
}

const CONFIG = {responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"]};
const isNarrow = () => window.innerWidth <= 760;

function layout(extra = {}) {
  const axis = {gridcolor: colour("grid"), zerolinecolor: colour("line"), linecolor: colour("line"), automargin: true};
  const {xaxis, yaxis, ...rest} = extra;
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: {color: colour("ink"), size: 12.5},
    margin: {l: 56, r: 14, t: 10, b: 44}, hovermode: "closest", dragmode: isNarrow() ? false : "zoom",
    hoverlabel: {bgcolor: colour("sheet"), bordercolor: colour("line"), font: {color: colour("ink")}, align: "left"},
    modebar: {bgcolor: "rgba(0,0,0,0)", color: colour("quiet"), activecolor: colour("found")},
    legend: {orientation: "h", y: 1.02, yanchor: "bottom", x: 0},
    xaxis: {...axis, ...xaxis}, yaxis: {...axis, ...yaxis}, ...rest,
  };
}

// Parts of the page draw themselves when it opens, and again when the theme or, on a page that follows a search, the
// data change; a part that has nothing to show is hidden.
const parts = [];
function part(section, wanted, draw) {
  if (section) byId(section).hidden = !wanted();
  parts.push({section, wanted, draw});
}

async function unpacked(id) {
  const text = byId(id).textContent.trim();
  if (!text) return new ArrayBuffer(0);
  const decoded = atob(text), bytes = new Uint8Array(decoded.length);
  for (let i = 0; i < decoded.length; i++) bytes[i] = decoded.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}
