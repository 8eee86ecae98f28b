// The charts of the search: best so far, verdicts, functions, calibration, timeline; and the tiles.
part(null, () => true, () => {
  byId("title").textContent = report.title;
  byId("subtitle").textContent = report.subtitle;
  byId("tiles").replaceChildren(...report.tiles.map(tile =>
    make("div", {className: "tile"}, make("b", {}, tile.value), make("span", {}, tile.label))));
});

const STATUS_COLOUR = {done: "found", failed: "bad", pruned: "warm", stale: "warm", running: "quiet", queued: "quiet"};

part("progress-section", () => report.progress.values.length, () => {
  const p = report.progress, x = p.values.map((_, i) => i + 1), baselines = Object.entries(p.baselines);
  const inner = [...p.best, ...p.random, ...baselines.map(b => b[1])].filter(isNumber);
  const spread = [...inner, quantile(p.values, sign > 0 ? 0.25 : 0.75)].filter(isNumber);
  let [low, high] = [Math.min(...spread), Math.max(...spread)];
  const margin = 0.08 * (high - low || Math.abs(high) || 1);
  [low, high] = [low - margin, high + margin];
  const worst = sign > 0 ? low : high;
  // What lies outside, or has no result, is marked at the edge.
  const outside = p.values.map(v => !isNumber(v) || v < low || v > high);
  const last = Math.max(x.length, 2);
  const best = baselines.length ? baselines.reduce((a, b) => sign * b[1] > sign * a[1] ? b : a) : null;
  const traces = baselines.map(([name, value]) => ({
    x: [1, last], y: [value, value], mode: "lines", name: name === best[0] ? `best baseline: ${name}` : name,
    showlegend: name === best[0], line: {color: colour(name === best[0] ? "warm" : "line"), width: name === best[0] ? 1.6 : 1},
    hovertemplate: `baseline ${plainText(name)}: ${number(value)}<extra></extra>`,
  }));
  traces.push({
    x, y: p.values.map((v, i) => outside[i] ? worst : v), mode: "markers", name: "trials", cliponaxis: false,
    marker: {
      color: p.status.map(s => colour(STATUS_COLOUR[s])), opacity: 0.65, size: p.values.length > 400 ? 4 : 6.5,
      symbol: outside.map(o => o ? (sign > 0 ? "triangle-down" : "triangle-up") : "circle"),
    },
    text: p.names.map((n, i) => `${chunked(n)}<br>${p.status[i]} ${number(p.values[i])}`),
    hovertemplate: "%{x}: %{text}<extra></extra>",
  });
  if (p.random.length)
    traces.push({x: x.slice(0, p.random.length), y: p.random, mode: "lines", name: "random search, as expected",
      line: {color: colour("quiet"), dash: "dash", width: 1.6}, hovertemplate: "random, %{x}: %{y:.4f}<extra></extra>"});
  traces.push({x, y: p.best, mode: "lines", name: "best so far", line: {color: colour("found"), width: 2.6, shape: "hv"},
    hovertemplate: "best of %{x}: %{y:.4f}<extra></extra>"});
  byId("progress-note").textContent = p.note;
  return Plotly.react("progress", traces, layout({
    xaxis: {title: {text: "evaluations"}, range: [1 - 0.01 * last, 1.01 * last]}, yaxis: {title: {text: plainText(report.objective)}, range: [low, high]},
  }), CONFIG);
});

part("verdict-section", () => report.confirmation, () => {
  const c = report.confirmation, shown = c.rows.filter(r => isNumber(r.difference));
  const tone = {better: "good", worse: "bad", failed: "bad"};
  const compared = shown.filter(r => r.verdict !== "reference").reverse();
  byId("verdict-note").textContent = c.note;
  byId("verdict").style.height = 90 + 26 * compared.length + "px";
  const interval = (low, high) => isNumber(low) ? ` [${number(low, true)}, ${number(high, true)}]` : "";
  const table = byId("verdict-table");
  // Where the best baseline is another one than the reference, each row is compared with it too.
  const best = c.best_baseline && c.best_baseline !== c.reference ? c.best_baseline : null;
  const heads = [["function", ""], [`${c.metric}, 95 % interval`, "optional"], [`difference to ${c.reference}`, ""], ["verdict", ""],
    ...(best ? [[`difference to the best baseline, ${best}`, "optional"], ["verdict on that", ""]] : []),
    ...(c.rows.some(r => isNumber(r.cost)) ? [["cost", "optional number"]] : []),
    ["seeds", "optional number"], ["the search saw", "optional number"]];
  table.replaceChildren(make("thead", {}, make("tr", {}, ...heads.map(([h, className]) => make("th", {className}, h)))));
  table.append(make("tbody", {}, ...c.rows.map(r => make("tr", {},
    make("td", {className: "name" + (r.is_baseline ? "" : " discovery")}, r.is_baseline ? "" : "◆ ", ...breakable(r.name)),
    make("td", {className: "optional"}, number(r.mean) + (isNumber(r.low) ? ` [${number(r.low)}, ${number(r.high)}]` : "")),
    make("td", {}, r.verdict === "reference" ? "" : number(r.difference, true) + interval(r.difference_low, r.difference_high)),
    make("td", {className: r.verdict}, r.verdict),
    ...(best ? [
      make("td", {className: "optional"}, r.to_best_verdict === "reference" ? "" : number(r.to_best, true) + interval(r.to_best_low, r.to_best_high)),
      make("td", {className: r.to_best_verdict}, r.to_best_verdict === "reference" ? "the best baseline" : r.to_best_verdict)] : []),
    ...(c.rows.some(row => isNumber(row.cost)) ? [make("td", {className: "optional number"}, isNumber(r.cost) ? r.cost.toPrecision(3) : "")] : []),
    make("td", {className: "optional number"}, r.seeds + (r.failed ? ` (${r.failed} failed)` : "")),
    make("td", {className: "optional number"}, number(r.searched))))));
  return Plotly.react("verdict", [{
    x: compared.map(r => r.difference), y: compared.map((_, i) => i), mode: "markers", type: "scatter",
    marker: {size: compared.map(r => r.is_baseline ? 8 : 11), symbol: compared.map(r => r.is_baseline ? "circle-open" : "diamond"),
      color: compared.map(r => colour(r.is_baseline ? "warm" : tone[r.verdict] || "found"))},
    error_x: {
      type: "data", symmetric: false, thickness: 1.8, width: 4, color: colour("quiet"),
      array: compared.map(r => isNumber(r.difference_high) ? r.difference_high - r.difference : 0),
      arrayminus: compared.map(r => isNumber(r.difference_low) ? r.difference - r.difference_low : 0),
    },
    text: compared.map(r => `${r.is_baseline ? "baseline" : "found"} ${chunked(r.name)}: ${number(r.difference, true)}, ${r.verdict}`
      + (best && r.to_best_verdict !== "reference" ? `<br>to ${plainText(best)}: ${number(r.to_best, true)}, ${r.to_best_verdict}` : "")), hovertemplate: "%{text}<extra></extra>",
  }], layout({
    showlegend: false,
    shapes: c.rows.filter(r => best && r.name === best && isNumber(r.difference)).map(r => ({type: "line", yref: "paper", y0: 0, y1: 1,
      x0: r.difference, x1: r.difference, line: {color: colour("warm"), width: 1.3, dash: "dash"}})),
    xaxis: {title: {text: `${plainText(c.metric)},${isNarrow() ? "<br>" : " "}difference to ${chunked(c.reference, isNarrow() ? 18 : 42)}`}, zerolinecolor: colour("quiet"), zerolinewidth: 1.5},
    yaxis: {tickvals: compared.map((_, i) => i), ticktext: compared.map(r => chunked(r.name, isNarrow() ? 18 : 42)),
      range: [-0.6, compared.length - 0.4]},
  }), CONFIG);
});

part("functions-section", () => report.functions.list.length, () => {
  const f = report.functions, traces = [];
  byId("functions-note").textContent = f.note;
  f.list.forEach((one, i) => {
    const found = one.kind === "found", color = found ? LINES[i % LINES.length] : colour("quiet");
    const line = {color, width: found ? 2.4 : 1.3, dash: found ? "solid" : ["dot", "dash", "dashdot"][i % 3]};
    const label = chunked(one.name, 44) + (isNumber(one.result) ? ` ${number(one.result)}` : "");
    for (const [y, axes, what] of [[one.y, ["x", "y"], "f"], [one.dy, ["x2", "y2"], "f′"]])
      traces.push({x: f.x, y, mode: "lines", name: label, legendgroup: one.name, showlegend: what === "f", line,
        xaxis: axes[0], yaxis: axes[1], hovertemplate: `${chunked(one.name)}<br>${what}(%{x:.2f}) = %{y:.4g}<extra></extra>`});
  });
  const narrow = isNarrow(), axis = layout();
  byId("functions").style.height = narrow ? 620 + 20 * f.list.length + "px" : "";
  const title = text => ({title: {text}, range: curveRange(...f.list.map(one => text === "f(x)" ? one.y : one.dy))});
  return Plotly.react("functions", traces, layout({
    grid: narrow ? {rows: 2, columns: 1, pattern: "independent"} : {rows: 1, columns: 2, pattern: "independent"},
    legend: narrow ? {orientation: "h", y: -0.1, yanchor: "top", x: 0} : {x: 1.02, y: 1},
    xaxis2: {...axis.xaxis, title: {text: "x"}}, yaxis2: {...axis.yaxis, ...title("f′(x)")},
    xaxis: {title: {text: narrow ? "" : "x"}}, yaxis: title("f(x)"),
  }), CONFIG);
});

part("calibration-section", () => report.calibration, () => {
  const c = report.calibration, all = [...c.observed, ...c.predicted], ends = [quantile(all, 0.02), quantile(all, 1)];
  if (sign < 0) [ends[0], ends[1]] = [quantile(all, 0), quantile(all, 0.98)];
  byId("calibration-note").textContent = c.note;
  return Plotly.react("calibration", [
    {x: ends, y: ends, mode: "lines", line: {color: colour("quiet"), dash: "dot", width: 1.2}, hoverinfo: "skip"},
    {x: c.predicted, y: c.observed, mode: "markers", marker: {color: colour("found"), opacity: 0.7, size: 6.5},
      text: c.names.map(n => chunked(n)), hovertemplate: "%{text}<br>predicted %{x:.4f}, observed %{y:.4f}<extra></extra>"},
  ], layout({
    showlegend: false, xaxis: {title: {text: "predicted " + plainText(report.objective)}},
    yaxis: {title: {text: "observed " + plainText(report.objective)}, range: widened(ends)},
  }), CONFIG);
});
function widened([low, high]) {
  const margin = 0.08 * (high - low || 1);
  return [low - margin, high + margin];
}

part("learning-section", () => report.learning.length, () => Plotly.react("learning", report.learning.map((one, i) => ({
  x: one.steps, y: one.values, mode: "lines", showlegend: false,
  line: {width: 1.4, color: one.status === "done" ? colour("found") : colour(STATUS_COLOUR[one.status]), dash: one.status === "done" ? "solid" : "dot"},
  opacity: 0.7, hovertemplate: `${chunked(one.name)}, ${one.status}<br>step %{x}: %{y:.4f}<extra></extra>`,
})).concat(report.learning.filter(one => one.status !== "done").map(one => ({
  x: one.steps.slice(-1), y: one.values.slice(-1), mode: "markers", showlegend: false, hoverinfo: "skip",
  marker: {symbol: "x", size: 8, color: colour(STATUS_COLOUR[one.status])},
}))), layout({
  xaxis: {title: {text: "step"}}, yaxis: {title: {text: plainText(report.objective)}, range: curveRange(...report.learning.map(one => one.values))},
}), CONFIG));

part("operators-section", () => report.operators.length, () => {
  const shown = [...report.operators].reverse();
  byId("operators").style.height = 80 + 19 * shown.length + "px";
  return Plotly.react("operators", [{
    type: "bar", orientation: "h", x: shown.map(o => o.effect), y: shown.map(o => o.name),
    marker: {color: shown.map(o => colour(sign * o.effect > 0 ? "good" : "bad"))},
    text: shown.map(o => `${plainText(o.name)}: ${number(o.effect, true)}, in ${count(o.candidates)} candidates`), textposition: "none",
    hovertemplate: "%{text}<extra></extra>",
  }], layout({showlegend: false, xaxis: {title: {text: `difference of the predicted ${plainText(report.objective)}`}}, yaxis: {dtick: 1}}), CONFIG);
});

part("cost-section", () => report.cost, () => {
  const all = report.cost.points, front = all.filter(p => p.front);
  byId("cost-note").textContent = report.cost.note;
  const said = p => `${p.baseline ? "baseline " : ""}${chunked(p.name)}<br>${p.cost.toPrecision(3)} times ReLU, ${number(p.result)}`;
  const marks = (points, color, symbol, size) => ({
    x: points.map(p => p.cost), y: points.map(p => p.result), mode: "markers", type: "scatter",
    marker: {color: colour(color), symbol, size, line: {width: 1.4}}, text: points.map(said), hovertemplate: "%{text}<extra></extra>",
  });
  return Plotly.react("cost", [
    {x: front.map(p => p.cost), y: front.map(p => p.result), mode: "lines", line: {color: colour("quiet"), width: 1.3, shape: "hv"}, hoverinfo: "skip"},
    {...marks(all.filter(p => !p.baseline), "found", "circle", 7), opacity: 0.65},
    marks(all.filter(p => p.baseline), "warm", "circle-open", 9),
  ], layout({
    showlegend: false, xaxis: {title: {text: "cost, ReLU = 1"}, type: "log", dtick: isNarrow() ? "D2" : "D1"},
    yaxis: {title: {text: plainText(report.objective)}, range: widened(spanned(all.map(p => p.result)))},
  }), CONFIG);
});
// Of results: the bad end is often far off.
function spanned(values) {
  return sign < 0 ? [quantile(values, 0), quantile(values, 0.95)] : [quantile(values, 0.05), quantile(values, 1)];
}

part("timeline-section", () => report.timeline.bars.length, () => {
  const t = report.timeline, lanes = t.lanes;
  const long = Math.max(...t.bars.map(bar => bar.end)) - Math.min(...t.bars.map(bar => bar.start)); // seconds
  byId("timeline-note").textContent = t.note;
  byId("timeline").style.height = Math.min(Math.max(340, 80 + 22 * lanes.length), 900) + "px";
  const traces = Object.keys(STATUS_COLOUR).map(status => {
    const bars = t.bars.filter(bar => bar.status === status);
    return {
      type: "bar", orientation: "h", name: status, y: bars.map(bar => bar.lane), base: bars.map(bar => bar.start * 1000),
      x: bars.map(bar => Math.max(bar.end - bar.start, 0) * 1000), width: 0.72,
      // The line is of the bar's own colour: a short trial is nothing but its line.
      marker: {color: colour(STATUS_COLOUR[status]), line: {width: 1.2, color: colour(STATUS_COLOUR[status])}, opacity: 0.85},
      text: bars.map(bar => `${chunked(bar.name)}<br>${plainText(lanes[bar.lane])}<br>${status}, ${duration(bar.end - bar.start)}`),
      textposition: "none", hovertemplate: "%{text}<extra></extra>",
    };
  }).filter(trace => trace.x.length);
  return Plotly.react("timeline", traces, layout({
    barmode: "overlay", xaxis: {type: "date", nticks: isNarrow() ? 4 : 8, tickformat: long > 172800 ? "%b %e, %H:%M" : "%H:%M:%S"},
    yaxis: {tickvals: lanes.map((_, i) => i), ticktext: lanes.map(l => chunked(l, 18)), range: [lanes.length - 0.4, -0.6]},
  }), CONFIG);
});
