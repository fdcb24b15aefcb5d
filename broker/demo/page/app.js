// The demo's page. It holds no token: it calls the API through the broker and draws what the API says of the token.

const WINDOW_SECONDS = 90;
const BURST = 50;
const PALETTE = 6;
const SVG = "http://www.w3.org/2000/svg";

const $ = (id) => document.getElementById(id);
const calls = [];        // {at, generation | null}, the last WINDOW_SECONDS of them
let counts = { calls: 0, failed: 0, refreshes: 0 };
let token = null;        // what the API said last, and until when the token lives by this page's clock
let paused = false;      // while a burst waits for the token's end

// X-CSRF proves that this page made the call: no other site can set the header without the broker's consent.
const get = (path) => fetch(path, { headers: { "X-CSRF": "1" }, cache: "no-store" });

async function call() {
  let generation = null;
  try {
    const response = await get("/api/token");
    if (response.status === 401) return loggedOut();
    if (response.ok) {
      const answer = await response.json();
      generation = answer.generation;
      learn(answer);
    }
  } catch {
    // The network failed: the call counts as failed below.
  }
  counts.calls += 1;
  if (generation === null) counts.failed += 1;
  calls.push({ at: performance.now(), generation });
  return generation;
}

function learn(answer) {
  const deadline = performance.now() + answer.expires_in * 1000;
  if (token !== null && answer.generation < token.generation) return;  // it was overtaken by a newer one
  if (token !== null) counts.refreshes += answer.generation - token.generation;
  token = { ...answer, deadline, life: answer.expires_at - answer.issued_at };
  $("generation").value = answer.generation;
  $("jti").value = answer.jti;
  $("fields").replaceChildren(...answer.fields.map((name) => {
    const item = document.createElement("li");
    item.textContent = name;
    item.classList.toggle("token", name === "authorization");
    return item;
  }));
}

function draw() {
  for (const name of ["calls", "failed", "refreshes"]) $(name).textContent = counts[name];
  if (token !== null) {
    const left = Math.max(0, (token.deadline - performance.now()) / 1000);
    $("expires").value = `${left.toFixed(1)} s`;
    $("life").setAttribute("width", Math.min(100, (100 * left) / token.life));
    $("life").classList.toggle("low", left < token.life / 4);
  }
  drawTimeline();
}

function drawTimeline() {
  const now = performance.now();
  while (calls.length && now - calls[0].at > WINDOW_SECONDS * 1000) calls.shift();
  const x = (at) => 900 - ((now - at) / (WINDOW_SECONDS * 1000)) * 900;
  const known = calls.filter((one) => one.generation !== null).map((one) => one.generation);
  const first = Math.min(...known);
  const marks = [shape("line", { x1: 0, x2: 900, y1: 100, y2: 100, class: "axis" })];
  for (let seconds = 15; seconds < WINDOW_SECONDS; seconds += 15) {
    marks.push(shape("text", { x: x(now - seconds * 1000), y: 115 }, `−${seconds} s`));
  }
  for (const { at, generation, count } of together(calls)) {
    if (generation === null) {
      const left = x(at) - 4, right = x(at) + 4;
      marks.push(shape("path", { d: `M${left} 46 ${right} 54M${left} 54 ${right} 46`, class: "failure" }));
      continue;
    }
    const y = 88 - ((generation - first) % 8) * 10;
    marks.push(shape("circle", { cx: x(at), cy: y, r: 3 + Math.sqrt(count), class: `g${generation % PALETTE}` }));
    if (count > 9) marks.push(shape("text", { x: x(at), y: y + 4, class: "many" }, count));
  }
  $("timeline").replaceChildren(...marks);
}

// Calls of one moment and one generation are one dot, as large as they are many.
function together(every) {
  const groups = [];
  for (const one of every) {
    const last = groups.at(-1);
    if (last && last.generation === one.generation && one.at - last.at < 500) last.count += 1;
    else groups.push({ ...one, count: 1 });
  }
  return groups;
}

function shape(name, attributes, text = "") {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
}

const time = (seconds) => new Date(seconds * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

async function burst() {
  const result = $("burst-result");
  $("burst").disabled = paused = true;
  result.className = "";
  const cells = Array.from({ length: BURST }, () => Object.assign(document.createElement("i"), { className: "waiting" }));
  $("cells").replaceChildren(...cells);
  while (performance.now() < token.deadline + 500) {
    result.value = `silent for ${((token.deadline + 500 - performance.now()) / 1000).toFixed(1)} s`;
    await sleep(50);
  }
  const before = token.generation;
  const generations = await Promise.all(cells.map(async (cell) => {
    const generation = await call();
    cell.className = generation === null ? "failure" : `g${generation % PALETTE}`;
    return generation;
  }));
  const served = generations.filter((generation) => generation !== null);
  const refreshes = Math.max(before, ...served) - before;
  result.value = `${served.length} of ${BURST} calls answered, ${refreshes} refresh${refreshes === 1 ? "" : "es"}`;
  result.className = served.length === BURST && refreshes === 1 ? "good" : "bad";
  await sleep(1000);
  $("burst").disabled = paused = false;
}

function loggedOut() {
  token = null;
  $("dashboard").hidden = $("log-out").hidden = true;
  $("welcome").hidden = false;
}

function loggedIn(user) {
  $("welcome").hidden = true;
  $("dashboard").hidden = $("log-out").hidden = false;
  $("subject").value = user.claims.name ?? user.claims.sub;
  $("cookies").textContent = document.cookie || "none";
  $("storage").textContent = localStorage.length + sessionStorage.length ? "something" : "empty";
  $("session").textContent = `who you are, from /bff/user; until ${time(user.session.ends_at)}`;
  // A navigation, since it goes on to the authorization server. The URL is good for this session only.
  $("log-out").addEventListener("click", () => location.assign(user.logout_url));
}

async function main() {
  const response = await get("/bff/user");
  if (!response.ok) return loggedOut();
  loggedIn(await response.json());
  $("burst").addEventListener("click", burst);
  setInterval(draw, 100);
  for (;;) {
    if (!paused && !$("dashboard").hidden) await call();
    await sleep(1000);
  }
}

main().catch((error) => {
  $("fault").hidden = false;
  $("fault").textContent = `${error}`;
});
