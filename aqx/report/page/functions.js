// Functions by name: parsed and evaluated here, so that any of hundreds of thousands can show its curve.
const OPERATORS = {{operators}};

// "max(relu(x),x)" → a function of a number, or of two where y stands in it; null for what is not known here, such as an operator of the user's own.
function compiled(name) {
  const tokens = name.match(/[A-Za-z_][A-Za-z0-9_]*|-?[0-9][-+.0-9e]*|[(),]/g) || [];
  let at = 0;
  function tree() {
    const word = tokens[at++];
    if (tokens[at] !== "(") {
      const number = Number(word);
      if (word === "x") return x => x;
      if (word === "y") return (x, y) => y;
      return Number.isNaN(number) ? null : () => number;
    }
    const operator = Object.hasOwn(OPERATORS, word) ? OPERATORS[word] : null, inner = [];
    do { at++; inner.push(tree()); } while (tokens[at] === ",");
    at++;
    if (!operator || inner.includes(null)) return null;
    if (inner.length === 1) return (x, y) => operator(inner[0](x, y));
    if (inner.length === 2) return (x, y) => operator(inner[0](x, y), inner[1](x, y));
    return (x, y) => operator(...inner.map(f => f(x, y)));
  }
  try { return tree(); } catch { return null; }
}

const CURVE_X = Array.from({length: 141}, (_, i) => -5 + i / 14);
const takesTwo = name => /[(,]y[,)]/.test(name);
function curveOf(name) {
  if (takesTwo(name)) return null;
  const f = compiled(name);
  return f && CURVE_X.map(x => { const y = f(x); return Number.isFinite(y) ? y : null; });
}
// Most of a curve should be seen, not its explosion at an end.
function curveRange(...curves) {
  const values = curves.flat().filter(isNumber);
  let low = Math.max(Math.min(...values, -0.5), quantile(values, 0.08) - 2);
  let high = Math.min(Math.max(...values, 0.5), quantile(values, 0.92) + 2);
  low = Math.max(low, -8); high = Math.min(high, 8);
  if (!(low < high)) [low, high] = [quantile(values, 0.1) - 1, quantile(values, 0.9) + 1];
  const margin = 0.06 * (high - low);
  return [low - margin, high + margin];
}

// The values of a function of two inputs over the plane.
const PLANE = Array.from({length: 41}, (_, i) => -4 + i / 5);
function drawPlane(element, name) {
  const f = compiled(name);
  if (!f) {
    element.textContent = "No map: it holds an operator of your own.";
    return;
  }
  const finite = value => Number.isFinite(value) ? value : null;
  const z = PLANE.map(y => PLANE.map(x => finite(f(x, y))));
  const size = quantile(z.flat().filter(isNumber).map(Math.abs), 0.95) || 1;
  Plotly.react(element, [{
    type: "heatmap", x: PLANE, y: PLANE, z, zmin: -size, zmax: size, colorscale: "RdBu", reversescale: false,
    showscale: false, hovertemplate: "f(%{x:.2f}, %{y:.2f}) = %{z:.4g}<extra></extra>",
  }], layout({
    margin: {l: 34, r: 6, t: 6, b: 22}, showlegend: false, dragmode: false,
    xaxis: {fixedrange: true}, yaxis: {fixedrange: true},
  }), {...CONFIG, displayModeBar: false});
}

function drawMini(element, name) {
  if (takesTwo(name)) { drawPlane(element, name); return; }
  const y = curveOf(name);
  if (!y) {
    element.textContent = "No curve: it holds an operator of your own.";
    return;
  }
  Plotly.react(element, [
    {x: CURVE_X, y: CURVE_X.map(x => Math.max(x, 0)), mode: "lines", line: {color: colour("line"), width: 1.5}, hoverinfo: "skip"},
    {x: CURVE_X, y, mode: "lines", line: {color: colour("found"), width: 2.2}, hovertemplate: "f(%{x:.2f}) = %{y:.4g}<extra></extra>"},
  ], layout({
    margin: {l: 34, r: 6, t: 6, b: 22}, showlegend: false, dragmode: false,
    xaxis: {fixedrange: true}, yaxis: {range: curveRange(y), fixedrange: true},
  }), {...CONFIG, displayModeBar: false});
}
