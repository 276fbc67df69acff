// Zoom, pan, search, unfold and click of the picture; no library, no network.
const data = JSON.parse(document.getElementById("data").textContent);
const scenes = [...document.querySelectorAll(".scene")];
const views = scenes.map(scene => scene.querySelector("svg").getAttribute("viewBox").split(" ").map(Number));
const whole = views.map(view => [...view]);
let shown = 0;

function svg() { return scenes[shown].querySelector("svg"); }
function apply() { svg().setAttribute("viewBox", views[shown].join(" ")); }

function show(key) {
  const fact = data[key];
  if (!fact) return;
  const panel = document.getElementById("facts");
  panel.replaceChildren();
  const title = document.createElement("h4");
  title.textContent = fact.title;
  const table = document.createElement("table");
  for (const [name, value] of fact.rows) {
    const row = table.insertRow();
    row.insertCell().textContent = name;
    row.insertCell().textContent = value;
  }
  const text = document.createElement("pre");
  text.textContent = fact.text;
  panel.append(title, table, text);
  document.querySelectorAll(".chosen").forEach(box => box.classList.remove("chosen"));
  document.querySelectorAll(`[data-key="${CSS.escape(key)}"]`).forEach(
    box => box.classList.add("chosen"));
}

function scale() {
  const [, , w, h] = views[shown], box = svg().getBoundingClientRect();
  return Math.max(w / box.width, h / box.height);
}

const area = document.getElementById("scenes");
area.addEventListener("wheel", event => {
  event.preventDefault();
  const view = views[shown], box = svg().getBoundingClientRect();
  const factor = event.deltaY > 0 ? 1.2 : 1 / 1.2;
  const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
  view[0] += view[2] * x * (1 - factor);
  view[1] += view[3] * y * (1 - factor);
  view[2] *= factor;
  view[3] *= factor;
  apply();
}, {passive: false});

let start = null, moved = false;
area.addEventListener("pointerdown", event => { start = [event.clientX, event.clientY]; moved = false; });
window.addEventListener("pointermove", event => {
  if (!start) return;
  const dx = event.clientX - start[0], dy = event.clientY - start[1];
  if (Math.abs(dx) + Math.abs(dy) > 3) moved = true;
  views[shown][0] -= dx * scale();
  views[shown][1] -= dy * scale();
  start = [event.clientX, event.clientY];
  apply();
});
window.addEventListener("pointerup", () => { start = null; });
area.addEventListener("click", event => {
  const box = event.target.closest("[data-key]");
  if (box && !moved) show(box.dataset.key);
});

document.getElementById("fit").onclick = () => { views[shown] = [...whole[shown]]; apply(); };
document.getElementById("fold").onclick = event => {
  scenes[shown].hidden = true;
  shown = 1 - shown;
  scenes[shown].hidden = false;
  event.target.textContent = shown ? "fold blocks" : "unfold blocks";
};
document.getElementById("search").oninput = event => {
  const words = event.target.value.trim().toLowerCase(), list = document.getElementById("found");
  list.replaceChildren();
  if (!words) return;
  const keys = Object.keys(data).filter(key => key.toLowerCase().includes(words)).slice(0, 30);
  for (const key of keys) {
    const link = document.createElement("a");
    link.textContent = key;
    link.onclick = () => show(key);
    list.append(link);
  }
};
