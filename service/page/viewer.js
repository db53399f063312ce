// The picture: fitted, zoomed and moved, with the one before it under a slider.

const find = (id) => document.getElementById(id);
const view = find("view"), after = find("after"), before = find("before"), slider = find("slider");
let scale = 1, left = 0, top_ = 0, comparing = true;

const size = () => [after.naturalWidth || 1, after.naturalHeight || 1];
const one = () => 1 / devicePixelRatio; // a pixel of the picture on each of the screen
const fitting = () => Math.min(view.clientWidth / size()[0], view.clientHeight / size()[1]);

function draw() {
  const [width, height] = size();
  for (const image of [after, before]) {
    image.style.width = `${width}px`;
    image.style.height = `${height}px`;
    image.style.transform = `translate(-50%, -50%) translate(${left}px, ${top_}px) scale(${scale})`;
  }
  view.classList.toggle("pixels", scale >= 4);
  split();
}

function split() {
  const share = slider.value / 100;
  find("compare").style.setProperty("--split", `${slider.value}%`);
  const [width] = size();
  // The picture's own x under the slider.
  const x = (share * view.clientWidth - view.clientWidth / 2 - left) / scale + width / 2;
  const seam = Math.max(0, Math.min(width, x));
  before.style.clipPath = `inset(0 ${width - seam}px 0 0)`;
  after.style.clipPath = before.hidden ? "" : `inset(0 0 0 ${seam}px)`; // else it shows through a transparent one
}

export function zoom(to, x = 0, y = 0) {
  const next = Math.min(Math.max(to, Math.min(fitting() / 4, one())), 32);
  left = x - ((x - left) * next) / scale;
  top_ = y - ((y - top_) * next) / scale;
  scale = next;
  draw();
}

export function fit() {
  left = top_ = 0;
  scale = fitting();
  draw();
}

export const zooms = { in: () => zoom(scale * 1.5), out: () => zoom(scale / 1.5), fit, one: () => zoom(one()) };

// Whether the browser can show it: not a TIFF.
async function load(image, url) {
  image.src = url;
  await image.decode().catch(() => {});
  return image.naturalWidth > 0;
}

// Show `url`, and `old` beside it for comparison where there is one. Of a picture of the same name, the next preview for
// one, the same place is shown.
export async function show(url, old, alt) {
  const moved = left || top_ || Math.abs(scale - fitting()) > 1e-3;
  const width = !view.hidden && moved && after.alt === alt && scale * size()[0];
  find("hint").hidden = true;
  view.hidden = false;
  after.alt = alt;
  await load(after, url);
  view.hidden = !after.naturalWidth;
  find("unseen").hidden = !view.hidden;
  const comparable = Boolean(old) && !view.hidden && (await load(before, old));
  before.hidden = !comparable || !comparing;
  find("compare").hidden = before.hidden;
  find("toggle").hidden = !comparable;
  if (!width) return fit();
  scale = width / size()[0];
  draw();
}

export function alone() {
  before.hidden = find("compare").hidden = true;
  split();
}

export function compare(wanted) {
  comparing = wanted;
  find("toggle").setAttribute("aria-pressed", String(wanted));
  const possible = before.src && !find("toggle").hidden;
  before.hidden = !possible || !wanted;
  find("compare").hidden = before.hidden;
  split();
}

slider.addEventListener("input", split);
find("toggle").addEventListener("click", () => compare(!comparing));
new ResizeObserver(() => view.hidden || fit()).observe(view);

const touches = new Map();
view.addEventListener("pointerdown", (event) => {
  touches.set(event.pointerId, event);
  view.setPointerCapture(event.pointerId);
  view.classList.add("moving");
});
view.addEventListener("pointermove", (event) => {
  const last = touches.get(event.pointerId);
  if (!last) return;
  const other = [...touches.values()].find((each) => each.pointerId !== event.pointerId);
  touches.set(event.pointerId, event);
  if (other) {
    const apart = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
    zoom((scale * apart(event)) / Math.max(apart(last), 1));
  } else {
    left += event.clientX - last.clientX;
    top_ += event.clientY - last.clientY;
    draw();
  }
});
for (const end of ["pointerup", "pointercancel"]) {
  view.addEventListener(end, (event) => {
    touches.delete(event.pointerId);
    view.classList.toggle("moving", touches.size > 0);
  });
}
view.addEventListener("wheel", (event) => {
  event.preventDefault();
  const box = view.getBoundingClientRect();
  const x = event.clientX - box.left - box.width / 2, y = event.clientY - box.top - box.height / 2;
  zoom(scale * Math.exp(-event.deltaY / 400), x, y);
}, { passive: false });
view.addEventListener("dblclick", () => (Math.abs(scale - fitting()) < 1e-3 ? zoom(Math.max(1, 2 * scale)) : fit()));
view.addEventListener("keydown", (event) => {
  const moves = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] };
  const keys = { "+": zooms.in, "=": zooms.in, "-": zooms.out, 0: fit, 1: zooms.one };
  if (moves[event.key]) {
    left += moves[event.key][0];
    top_ += moves[event.key][1];
    draw();
  } else if (keys[event.key]) keys[event.key]();
  else return;
  event.preventDefault();
});
for (const button of document.querySelectorAll("[data-zoom]")) {
  button.addEventListener("click", () => zooms[button.dataset.zoom]());
}
