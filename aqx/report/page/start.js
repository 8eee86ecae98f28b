// The theme, and then everything in turn: between two charts the browser may show what there is, and answer.
const root = document.documentElement;
root.dataset.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";

async function drawAll() {
  for (const draw of parts) {
    await draw();
    await new Promise(done => setTimeout(done));
  }
}

async function start() {
  if (report.map.count) {
    byId("map-note").textContent = report.map.note;
    await loadMap();
    byId("card").replaceChildren(make("p", {}, "Point at a candidate to see its curve; click to pin it."));
  }
  await drawAll();
  if (report.map.count) wireMap();
  byId("theme").onclick = async () => {
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
    await drawAll();
    for (const card of [byId("card"), ...byId("pinned").children]) if (card.row >= 0) fillCard(card, card.row, card.id !== "card");
  };
  root.dataset.ready = "yes";
}
start();
