// Trials that sort and filter, failures by reason, and how to reproduce what is shown.
part("failures-section", () => report.failures.length, () => {
  const total = report.failures.reduce((sum, failure) => sum + failure.count, 0);
  byId("failures-note").textContent = `${count(total)} ${total === 1 ? "trial has" : "trials have"} no result.`;
  byId("failures").replaceChildren(
    make("thead", {}, make("tr", {}, make("th", {className: "number"}, "trials"), make("th", {}, "reason"), make("th", {}, "functions"))),
    make("tbody", {}, ...report.failures.map(f => make("tr", {},
      make("td", {className: "number"}, count(f.count)),
      make("td", {className: "long"}, f.reason, f.traceback ? make("details", {}, make("summary", {}, "traceback"), make("pre", {}, f.traceback)) : null),
      make("td", {className: "name"}, ...f.names.flatMap((name, i) => [i ? " " : "", ...breakable(name)]), f.count > f.names.length ? " …" : "")))));
});

const SHOWN = 25;
const trialView = {column: "id", ascending: false, shown: SHOWN}; // the newest first
const COLUMNS = [
  ["id", "trial", "number optional"], ["name", "function", "name"], ["purpose", "purpose", "optional"], ["status", "status", ""],
  ["objective", report.objective, "number"], ...report.metrics.map(m => [m, m, "number optional"]),
  ["seconds", "seconds", "number optional"], ["worker", "worker", "optional"], ["started", "started (UTC)", "optional"], ["reason", "reason", "long"],
];
const valueOf = (trial, column) => report.metrics.includes(column) ? trial.metrics[column] : trial[column];

function chosenTrials() {
  const words = byId("trials-filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const status = byId("trials-status").value, purpose = byId("trials-purpose").value;
  const matching = report.trials.filter(t => (!status || t.status === status) && (!purpose || t.purpose === purpose)
    && words.every(word => `${t.name} ${t.reason || ""} ${t.worker || ""}`.toLowerCase().includes(word)));
  const {column, ascending} = trialView;
  const rank = value => value === null || value === undefined ? 1 : 0;
  return matching.sort((a, b) => {
    const [u, v] = [valueOf(a, column), valueOf(b, column)];
    if (rank(u) || rank(v)) return rank(u) - rank(v) || a.id - b.id; // what is missing comes last
    const order = typeof u === "number" ? u - v : String(u).localeCompare(String(v), "en");
    return (ascending ? order : -order) || a.id - b.id;
  });
}

function showTrials() {
  const rows = chosenTrials();
  const write = (trial, column) => {
    const value = valueOf(trial, column);
    if (column === "id") return value;
    if (column === "seconds") return isNumber(value) ? value.toFixed(2) : "";
    return typeof value === "number" ? number(value) : value ?? "";
  };
  byId("trials").replaceChildren(
    make("thead", {}, make("tr", {}, ...COLUMNS.map(([key, heading, className]) => {
      const sorted = key === trialView.column;
      const button = make("button", {type: "button", onclick: () => sortTrials(key)}, heading);
      const cell = make("th", {className: className === "name" ? "" : className}, button);
      cell.dataset.column = key;
      if (sorted) cell.setAttribute("aria-sort", trialView.ascending ? "ascending" : "descending");
      return cell;
    }))),
    make("tbody", {}, ...rows.slice(0, trialView.shown).map(trial => {
      const row = make("tr", {className: trial.row >= 0 ? "onmap" : ""}, ...COLUMNS.map(([key, , className]) =>
        make("td", {className: className + (key === "status" ? " " + trial.status : "")},
          ...(key === "name" ? breakable(trial.name) : [write(trial, key)]))));
      if (trial.row >= 0) {
        row.title = "Show it on the map";
        row.onclick = () => { pin(trial.row); byId("map-section").scrollIntoView({behavior: "smooth"}); };
      }
      return row;
    })));
  byId("trials-count").textContent = `${count(rows.length)} of ${count(report.trials.length)}`;
  byId("trials-more").hidden = rows.length <= trialView.shown;
}

function sortTrials(column) {
  const numeric = report.trials.some(t => typeof valueOf(t, column) === "number");
  const first = column === "objective" ? sign < 0 : !numeric || column === "id"; // the best, the longest first
  Object.assign(trialView, {column, ascending: trialView.column === column ? !trialView.ascending : first});
  showTrials();
}

part(null, () => true, () => {
  for (const [id, key] of [["trials-status", "status"], ["trials-purpose", "purpose"]]) {
    const values = [...new Set(report.trials.map(t => t[key]))].sort(), chosen = byId(id).value;
    byId(id).replaceChildren(make("option", {value: ""}, `any ${key}`), ...values.map(v => make("option", {value: v}, v)));
    byId(id).value = values.includes(chosen) ? chosen : "";
  }
});
for (const id of ["trials-status", "trials-purpose"]) {
  byId(id).onchange = () => { trialView.shown = SHOWN; showTrials(); };
}
byId("trials-filter").oninput = () => { trialView.shown = SHOWN; showTrials(); };
byId("trials-more").onclick = () => { trialView.shown += 20 * SHOWN; showTrials(); };
part("trials-section", () => report.trials.length, showTrials);

part("reproduce-section", () => true, () => {
  byId("commands").textContent = report.reproduce.commands.join("\n");
  byId("environment").replaceChildren(make("tbody", {}, ...report.reproduce.facts.map(([what, is]) =>
    make("tr", {}, make("th", {}, what), make("td", {className: "long"}, is)))));
});
