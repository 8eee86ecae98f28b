// The theme, and then everything in turn: between two charts the browser may show what there is, and answer.
const root = document.documentElement;
root.dataset.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";

async function drawAll() {
  for (const {section, wanted, draw} of parts) {
    if (section) byId(section).hidden = !wanted();
    if (wanted()) await draw();
    await new Promise(done => setTimeout(done));
  }
}

// A page of `aqx watch` asks its server for what is new, and draws that.
async function follow() {
  for (;;) {
    await new Promise(done => setTimeout(done, 1000 * report.live));
    let news;
    try {
      news = await (await fetch("data.json?since=" + encodeURIComponent(report.revision))).json();
    } catch (error) {
      root.dataset.live = "ended";
      byId("subtitle").textContent = report.subtitle + " · aqx watch has ended; this is how it stood";
      return;
    }
    if (news.page) {
      Object.assign(report, news.page);
      if (report.map.count) collectTrials();
      await drawAll();
    }
    root.dataset.live = "yes";
    root.dataset.trials = report.trials.length;
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
  if (report.live) follow();
}
start();
