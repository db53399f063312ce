// The section of batch jobs: an archive goes in, every job shows how far it is, what failed can be tried again.

import { getJson, headers, Refused } from "./api.js";

const ACTIVE = ["planning", "running"];
const section = document.querySelector("#jobs");
const key = () => document.querySelector("input[name=key]")?.value.trim() || "";

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const say = element("p", { role: "alert", hidden: true });
const list = element("ol", { className: "jobs" });
const file = element("input", { type: "file", accept: ".zip,application/zip", hidden: true, ariaLabel: "ZIP of pictures" });
const upload = element("button", { type: "button", textContent: "Enlarge a ZIP of pictures ×4" });
const shown = new Map(); // id → the job as it was drawn last

async function send(method, path, body) {
  const answer = await fetch(path, { method, body, headers: headers(key()) });
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => ({}));
  throw new Refused(problem.detail || `the server answered ${answer.status} ${answer.statusText}`);
}

async function attempt(work) {
  say.hidden = true;
  try {
    await work();
  } catch (error) {
    say.textContent = error.message;
    say.hidden = false;
  }
  await refresh();
}

function clock(seconds) {
  const minutes = Math.ceil(seconds / 60);
  if (seconds < 90) return `${Math.ceil(seconds)} s`;
  return minutes < 90 ? `${minutes} min` : `${(minutes / 60).toFixed(1)} h`;
}

function words(job) {
  const parts = [`${job.done + job.kept} of ${job.total}`];
  if (job.failed) parts.push(`${job.failed} failed`);
  if (job.rate) parts.push(`${job.rate.toFixed(job.rate < 1 ? 2 : 1)} a second`);
  if (job.seconds_left) parts.push(`about ${clock(job.seconds_left)} left`);
  if (job.note) parts.push(job.note);
  return `${job.state}: ${parts.join(", ")}`;
}

async function download(job) {
  const answer = await send("GET", `jobs/${job.id}/result.zip`);
  const url = URL.createObjectURL(await answer.blob());
  element("a", { href: url, download: `${job.id}.zip` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

function actions(job) {
  const button = (text, work) => element("button", { type: "button", textContent: text, onclick: () => attempt(work) });
  const made = [];
  if (ACTIVE.includes(job.state)) made.push(button("Cancel", () => send("POST", `jobs/${job.id}/cancel`)));
  else {
    if (job.failed || job.state !== "done") {
      made.push(button("Try the rest again", () => send("POST", `jobs/${job.id}/retry-failed`)));
    }
    made.push(button("Forget", () => send("DELETE", `jobs/${job.id}`)));
  }
  if (!job.done && !job.kept) return made;
  if (key()) made.unshift(button("Download", () => download(job)));
  else made.unshift(element("a", { className: "button", href: `jobs/${job.id}/result.zip`, textContent: "Download" }));
  return made;
}

// Put these buttons and links in the row. What is there already stays where it is: one that is taken out and put back
// loses the keyboard's focus, and a press that is under way does nothing.
function place(row, wanted) {
  const same = (one, other) => one.tagName === other.tagName && one.textContent === other.textContent;
  const there = [...row.querySelectorAll("button, a")];
  for (const each of there) if (!wanted.some((other) => same(each, other))) each.remove();
  let next = null;
  for (const each of wanted.reverse()) {
    const kept = there.find((other) => same(each, other));
    if (!kept) row.insertBefore(each, next);
    next = kept ?? each;
  }
}

function whatFailed(job) {
  const failures = element("ul");
  const details = element("details", {}, element("summary", { textContent: "What failed" }), failures);
  details.addEventListener("toggle", async () => {
    const full = await getJson(`jobs/${job.id}`, key());
    failures.replaceChildren(...full.failures.map((each) => element("li", { textContent: `${each.source}: ${each.error}` })));
  }, { once: true });
  return details;
}

function draw(job) {
  const row = element("div", { className: "row" }, element("b", { textContent: job.output ?? "A ZIP of pictures" }));
  const bar = element("progress", { ariaLabel: `job ${job.id}` });
  return element("li", { id: `job-${job.id}`, tabIndex: -1 }, row, bar, element("p"));
}

function update(item, job) {
  const held = item.contains(document.activeElement);
  place(item.querySelector(".row"), actions(job));
  const bar = item.querySelector("progress");
  bar.max = Math.max(1, job.total);
  bar.value = job.done + job.kept + job.failed;
  item.querySelector("p").textContent = words(job);
  const failed = ACTIVE.includes(job.state) ? 0 : job.failed;
  if (Number(item.dataset.failed ?? 0) !== failed) {
    item.querySelector("details")?.remove();
    if (failed) item.append(whatFailed(job));
    item.dataset.failed = failed;
  }
  if (held && !item.contains(document.activeElement)) item.focus(); // the button that had it is gone
}

async function refresh() {
  let jobs;
  try {
    jobs = await getJson("jobs?limit=20", key());
  } catch {
    return false; // the page's own status line says that the server is away
  }
  for (const id of [...shown.keys()].filter((id) => !jobs.some((job) => job.id === id))) {
    const gone = document.querySelector(`#job-${id}`);
    const held = gone?.contains(document.activeElement);
    gone?.remove();
    if (held) upload.focus();
    shown.delete(id);
  }
  for (const job of jobs.slice().reverse()) {
    const text = JSON.stringify(job);
    if (shown.get(job.id) === text) continue;
    if (!shown.has(job.id)) list.prepend(draw(job));
    update(document.querySelector(`#job-${job.id}`), job);
    shown.set(job.id, text);
  }
  return jobs.some((job) => ACTIVE.includes(job.state));
}

async function keepWatching() {
  const busy = document.hidden ? false : await refresh();
  setTimeout(keepWatching, busy ? 1_000 : 10_000);
}

upload.addEventListener("click", () => file.click());
file.addEventListener("change", () => attempt(async () => {
  const [archive] = file.files;
  file.value = "";
  if (!archive) return;
  upload.disabled = true;
  try {
    await send("POST", "jobs/zip", archive);
  } finally {
    upload.disabled = false;
  }
}));
section.append(
  element("div", { className: "row" }, element("h2", { textContent: "Jobs" }), element("span", { className: "spread" }), upload, file),
  say,
  list,
);
section.hidden = false;
keepWatching();
