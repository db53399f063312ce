// The form, what it asks of the server, and what becomes of the answer.

import { follow, getJson, Refused } from "./api.js";
import { forget, remember, remembered } from "./history.js";
import { alone, show } from "./viewer.js";

const find = (id) => document.getElementById(id);
const form = find("ask");
const STAGES = { queued: "Waiting", starting: "Starting", base: "Drawing", x4: "Enlarging ×4", x16: "Enlarging ×16" };
let info = null, picture = null, running = null, current = null, retry = 0;
let watching = false; // what is being made, not what was made before

const field = (name) => form.elements[name];
const mode = () => field("mode").value;

function fail(text) {
  find("error").textContent = text;
  find("error").hidden = !text;
}

function setMode(wanted) {
  field("mode").value = wanted;
  for (const part of form.querySelectorAll("[data-mode]")) {
    part.hidden = part.dataset.mode !== wanted;
    for (const control of part.querySelectorAll("input, select, textarea")) control.disabled = part.hidden;
  }
  find("go").textContent = wanted === "draw" ? "Draw" : "Enlarge";
  if (wanted === "enlarge" && field("upscale").value === "1") field("upscale").value = "4";
  tellSize();
}

function tellSize() {
  const times = Number(field("upscale").value);
  const own = mode() === "draw" ? info && [info.width, info.height] : picture?.width && [picture.width, picture.height];
  find("size").textContent = own ? `${own[0] * times} × ${own[1] * times} pixels` : "";
}

async function connect() {
  const state = find("server");
  try {
    info = await getJson("info", field("key").value);
    state.className = "ready";
    state.textContent = `${info.base_model} model on ${info.device}`;
    const { settings } = info;
    field("num_images").max = settings.max_images;
    for (const [name, value] of [["steps", settings.base_steps], ["sr_steps", settings.sr_steps], ["aug_level", settings.aug_level]]) {
      field(name).placeholder = value;
    }
    for (const [name, known] of [["scheduler", info.schedulers], ["sr_scheduler", info.sr_schedulers]]) {
      const chosen = field(name).value;
      field(name).replaceChildren(new Option("auto", ""), ...known.map((each) => new Option(each)));
      field(name).value = known.includes(chosen) ? chosen : "";
    }
    tellSize();
  } catch (error) {
    info = null;
    state.className = "bad";
    const words = error instanceof Refused ? error.message : "the server does not answer";
    if (error.status === 401 && state.textContent !== words) find("settings").open = true; // where a key goes
    state.textContent = words;
    clearTimeout(retry);
    retry = setTimeout(connect, 2000);
  }
}

async function take(file) {
  if (!file) return;
  setMode("enlarge");
  fail("");
  const taken = { blob: file, name: file.name || "picture" };
  picture = taken;
  find("dropped").textContent = taken.name;
  tellSize();
  const url = URL.createObjectURL(file);
  const image = new Image();
  image.src = url;
  image.alt = "";
  await image.decode().catch(() => {}); // a TIFF: the server can read what this browser cannot show
  if (picture !== taken || !image.naturalWidth) return URL.revokeObjectURL(url);
  Object.assign(taken, { url, width: image.naturalWidth, height: image.naturalHeight });
  find("dropped").replaceChildren(image, `${taken.name}, ${taken.width} × ${taken.height}`);
  tellSize();
}

function numbers(names) {
  return Object.fromEntries(names.filter((name) => field(name).value !== "").map((name) => [name, Number(field(name).value)]));
}

function asked() {
  const format = field("format").value || undefined, key = field("key").value;
  if (mode() === "draw") {
    const body = {
      prompt: field("prompt").value.trim(),
      negative_prompt: field("negative_prompt").value,
      ...numbers(["seed", "num_images", "steps", "guidance_scale", "sr_steps", "aug_level"]),
      scheduler: field("scheduler").value || undefined,
      sr_scheduler: field("sr_scheduler").value || undefined,
      format,
    };
    if (!body.prompt) throw new Refused("Type what to draw.");
    const path = `generate?upscale=${field("upscale").value}`;
    return { path, type: "application/json", body: JSON.stringify(body), key, title: body.prompt };
  }
  if (!picture) throw new Refused("Choose a picture to enlarge.");
  const query = new URLSearchParams({ factor: field("upscale").value, ...numbers(["seed", "aug_level", "views"]) });
  if (field("sr_steps").value !== "") query.set("steps", field("sr_steps").value);
  if (field("sr_scheduler").value) query.set("scheduler", field("sr_scheduler").value);
  if (format) query.set("format", format);
  const known = /^image\/(png|jpeg|webp|tiff|bmp)$/.test(picture.blob.type);
  const type = known ? picture.blob.type : "application/octet-stream";
  return { path: `upscale?${query}`, type, body: picture.blob, key, title: picture.name };
}

const nameOf = (control) => control.labels[0].textContent.trim();

// The form as it is now, to be filled in again.
function entered() {
  const values = Object.fromEntries(new FormData(form).entries());
  delete values.key;
  return { mode: mode(), asked: values };
}

// For those who hear the page: how far it is only when that is another stage.
function say(text) {
  if (find("said").textContent !== text) find("said").textContent = text;
}

function tellProgress(status) {
  const steps = status.progress ?? [];
  const at = steps[0] ?? { stage: "queued", step: 0, steps: 0 };
  const part = at.steps ? at.step / at.steps : 0;
  find("bar").value = part;
  const place = status.place ? `, ${status.place} before you` : "";
  say(STAGES[at.stage] ?? at.stage);
  find("step").textContent = `${STAGES[at.stage] ?? at.stage}${place}${at.steps ? `, step ${at.step} of ${at.steps}` : ""} …`;
}

function busy(now) {
  find("go").setAttribute("aria-disabled", String(now)); // disabled, it would lose the keyboard's place
  find("again").disabled = now;
  if (document.activeElement === find("stop")) find("go").focus();
  find("stop").hidden = !now;
  find("progress").hidden = !now;
  find("stage").setAttribute("aria-busy", String(now));
}

async function run() {
  if (running) return;
  fail("");
  let wanted;
  try {
    wanted = asked();
    wanted.entered = entered();
  } catch (error) {
    fail(error.message);
    (mode() === "draw" ? field("prompt") : find("file")).focus();
    return;
  }
  running = new AbortController();
  const source = mode() === "enlarge" ? picture : null;
  find("stage").dataset.state = "busy";
  for (const id of ["tools", "facts", "several", "unseen"]) find(id).hidden = true;
  alone();
  find("hint").hidden = true;
  watching = true;
  if (source?.url) show(source.url, null, wanted.title);
  tellProgress({});
  busy(true);
  try {
    await follow(wanted.path, { ...wanted, signal: running.signal }, {
      status: tellProgress,
      preview: ({ index, image }) => {
        if (!index && watching) return show(image, null, `${wanted.title}, not finished`);
      },
      done: (result) => finished(result, wanted, source),
      error: (problem) => fail(problem.detail),
      cancelled: () => fail("Cancelled."),
    });
  } catch (error) {
    fail(error.name === "AbortError" ? "Cancelled." : error instanceof Refused ? error.message : "The server does not answer.");
    if (error.status === 401) {
      find("settings").open = true;
      field("key").focus();
    }
    if (error.name !== "AbortError") connect(); // it may be away, or be another by now
  }
  running = null;
  busy(false);
  if (!find("error").textContent) return;
  if (current) await present(current); // not what was left half done
  else {
    find("stage").dataset.state = "empty";
    find("view").hidden = true;
    find("hint").hidden = false;
  }
}

function bytesOf(image) {
  const text = atob(image.b64_json), bytes = new Uint8Array(text.length);
  for (let at = 0; at < bytes.length; at++) bytes[at] = text.charCodeAt(at);
  return new Blob([bytes], { type: image.media_type });
}

async function finished(result, wanted, source) {
  const entries = [];
  for (const image of result.images) {
    const settings = image.settings;
    const entry = {
      blob: bytesOf(image), title: wanted.title, seed: image.seed, width: image.width, height: image.height,
      settings, upscale: settings.upscale, timings: result.timings_ms, ...wanted.entered,
      before: source?.blob ?? null, when: Date.now(),
    };
    entries.push(entry);
    await remember(entry).catch(() => {}); // a browser that keeps nothing still shows it
  }
  several(entries);
  await present(entries[0]);
  say(`Done: ${wanted.title}, ${entries[0].width} × ${entries[0].height} pixels`);
  list();
}

function several(entries) {
  find("several").hidden = entries.length < 2;
  find("several").replaceChildren(...entries.map((entry) => tile(entry)));
}

const isCurrent = (entry) => current?.when === entry.when && current.seed === entry.seed;

function tile(entry) {
  const button = document.createElement("button"), image = document.createElement("img");
  button.type = "button";
  button.title = entry.title;
  image.alt = `${entry.title}, seed ${entry.seed}`;
  image.loading = "lazy";
  image.src = URL.createObjectURL(entry.blob);
  image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
  button.append(image);
  button.addEventListener("click", () => present(entry));
  button.entry = entry;
  button.setAttribute("aria-current", String(isCurrent(entry)));
  return button;
}

// What the picture was before it was enlarged: the upload, or the picture shrunk again to the base model's size.
async function beforeOf(entry) {
  if (entry.before) return entry.before;
  if (!(entry.upscale > 1)) return null;
  const [width, height] = entry.settings.base_size;
  const small = new OffscreenCanvas(width, height);
  const context = small.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(await createImageBitmap(entry.blob), 0, 0, width, height);
  return small.convertToBlob({ type: "image/png" });
}

let shown = [];

async function present(entry) {
  current = entry;
  watching = false;
  const old = await beforeOf(entry).catch(() => null);
  if (current !== entry || watching) return; // something else is looked at by now
  for (const url of shown) URL.revokeObjectURL(url);
  const url = URL.createObjectURL(entry.blob), oldUrl = old && URL.createObjectURL(old);
  shown = [url, oldUrl].filter(Boolean);
  find("stage").dataset.state = "done";
  await show(url, oldUrl, entry.title);
  if (current !== entry || watching) return;
  const kind = entry.blob.type.split("/")[1];
  find("download").href = url;
  find("download").download = `${entry.title.replace(/\.\w+$/, "").replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40)}-${entry.seed}.${kind}`;
  find("tools").hidden = find("facts").hidden = false;
  facts(entry);
  for (const button of document.querySelectorAll(".strip button")) {
    button.setAttribute("aria-current", String(isCurrent(button.entry)));
  }
}

function facts(entry) {
  const { settings, timings } = entry;
  const total = Object.values(timings ?? {}).reduce((sum, each) => sum + each, 0) / 1000;
  const pairs = {
    Prompt: settings.prompt, "Negative prompt": settings.negative_prompt, Seed: entry.seed,
    Size: `${entry.width} × ${entry.height}`, Model: settings.base_model, Scheduler: settings.sampler, Steps: settings.steps,
    "Guidance scale": settings.guidance_scale, "Enlarged by": settings.sr_model && `SR3 ${settings.sr_model} ×${settings.upscale}`,
    "Upscaling steps": settings.sr_steps, "Noise augmentation": settings.aug_level, Views: settings.views, Time: `${total.toFixed(1)} s`,
  };
  const made = Object.entries(pairs).filter(([, value]) => value !== undefined && value !== null && value !== "");
  find("facts").replaceChildren(...made.map(([name, value]) => {
    const row = document.createElement("div"), term = document.createElement("dt"), text = document.createElement("dd");
    term.textContent = name;
    text.textContent = value;
    row.append(term, text);
    return row;
  }));
}

async function list() {
  const entries = (await remembered().catch(() => [])).reverse();
  find("past").hidden = !entries.length;
  find("history").replaceChildren(...entries.map((entry) => {
    const item = document.createElement("li");
    item.append(tile(entry));
    return item;
  }));
}

function enter(values) {
  for (const [name, value] of Object.entries(values)) {
    const control = field(name);
    if (!control || name === "mode" || value instanceof File) continue;
    control.value = value;
    if (control.selectedIndex === -1) control.add(new Option(value, value, true, true)); // the server will say if it is one
  }
}

function again() {
  find("go").focus({ preventScroll: true }); // this button goes
  setMode(current.mode);
  enter(current.asked);
  field("seed").value = current.seed;
  if (current.mode === "enlarge") take(new File([current.before], current.title, { type: current.before.type })).then(run);
  else run();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
form.addEventListener("invalid", ({ target }) => {
  if (find("settings").contains(target)) find("settings").open = true; // else the browser cannot point at it
  if (target === form.querySelector(":is(input, select, textarea):invalid")) fail(`${nameOf(target)}: ${target.validationMessage}`);
}, true);
form.addEventListener("change", (event) => {
  if (!running) fail(""); // it was about what has been changed
  if (event.target.name === "mode") setMode(mode());
  if (event.target.name === "key") {
    sessionStorage.setItem("key", field("key").value);
    connect();
  }
  tellSize();
});
field("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
find("stop").addEventListener("click", () => running?.abort());
find("file").addEventListener("change", (event) => take(event.target.files[0]));
find("again").addEventListener("click", again);
find("larger").addEventListener("click", () => {
  const kind = current.blob.type.split("/")[1];
  take(new File([current.blob], `${current.title}.${kind}`, { type: current.blob.type }));
  find("go").focus();
});
find("forget").addEventListener("click", async () => {
  await forget();
  list();
});
document.addEventListener("paste", ({ target, clipboardData }) => {
  const words = ["text/plain", "text/html"].every((kind) => clipboardData.types.includes(kind));
  if (words && target.matches("input, textarea")) return; // with a picture of them, as office programs copy
  take([...clipboardData.files].find((file) => file.type.startsWith("image/")));
});
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    if (name === "dragover") setMode("enlarge");
    find("drop").classList.toggle("over", name === "dragover");
    if (name !== "drop") return;
    const [file, ...others] = event.dataTransfer.files;
    take(file);
    if (others.length) fail(`One picture at a time: ${file.name} was taken.`);
  });
}

addEventListener("beforeunload", (event) => running && event.preventDefault()); // it would be ended
addEventListener("pagehide", () => {
  const named = [...form.elements].filter(({ name, type }) => name && type !== "password");
  sessionStorage.setItem("form", JSON.stringify(Object.fromEntries(named.map(({ name }) => [name, field(name).value]))));
});

field("key").value = sessionStorage.getItem("key") ?? "";
const left = JSON.parse(sessionStorage.getItem("form") ?? "{}");
enter(left);
setMode(left.mode ?? "draw");
connect();
list();
