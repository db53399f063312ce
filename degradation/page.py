"""One self-contained web page on which a person flips between an original and its degraded versions."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from degradation.captions import FAMILY_COLOURS, describe
from degradation.sheet import Panel, Section


def draw_page(sections: Sequence[Section], heading: str) -> str:
    """The page as HTML text, with every picture inside it as a PNG: nothing is fetched."""
    pictures = [_picture(section) for section in sections]
    data = json.dumps(pictures).replace("<", "\\u003c")  # no file name can end the script
    return _PAGE.replace("{heading}", html.escape(heading)).replace("{pictures}", data)


def _picture(section: Section) -> dict[str, Any]:
    return {
        "name": section.name,
        "about": section.about,
        "versions": [_version(panel) for panel in section.panels],
    }


def _version(panel: Panel) -> dict[str, Any]:
    captions = [describe(step) for step in panel.steps]
    return {
        "title": panel.title,
        "note": panel.note,
        "width": panel.image.shape[1],
        "height": panel.image.shape[0],
        "image": _data_url(panel.image),
        "steps": [
            {"colour": f"rgb{FAMILY_COLOURS[family]}", "family": family, "text": text} for family, text in captions
        ],
    }


def _data_url(image: np.ndarray) -> str:
    pixels = np.rint(image * 255).astype(np.uint8)
    _, png = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    return "data:image/png;base64," + base64.b64encode(png.tobytes()).decode()


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{heading}</title>
<style>
:root { color-scheme: light dark; --paper: #f4f3ef; --card: #fff; --ink: #1d1f24; --grey: #70747c;
  --line: #e2e0db; --mark: #3b6eb2; }
@media (prefers-color-scheme: dark) { :root { --paper: #17181b; --card: #212327; --ink: #eceae4;
  --grey: #9a9ea6; --line: #34373d; --mark: #7fa8dd; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 28px 28px 48px; max-width: 1240px; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.35rem; margin: 0 0 4px; }
p { margin: 0; color: var(--grey); }
kbd { border: 1px solid var(--line); border-radius: 4px; padding: 0 5px; background: var(--card);
  font: inherit; font-size: .85em; }
.row { display: flex; gap: 8px; overflow-x: auto; padding: 6px 3px; }
.row button { flex: none; border: 1px solid var(--line); border-radius: 8px; padding: 5px;
  background: var(--card); color: inherit; font: inherit; font-size: .8rem; cursor: pointer; }
.row button[aria-pressed=true] { outline: 3px solid var(--mark); }
.row img { display: block; width: 92px; height: 92px; object-fit: cover; border-radius: 4px;
  margin-bottom: 3px; image-rendering: pixelated; }
main { display: grid; grid-template-columns: minmax(0, 1fr) 330px; gap: 24px; margin-top: 14px; }
@media (max-width: 840px) { main { grid-template-columns: minmax(0, 1fr); } }
#stage { position: relative; display: block; width: 100%; padding: 0; border: 0; border-radius: 12px;
  overflow: hidden; background: var(--card); cursor: pointer; line-height: 0; }
#stage img { width: 100%; max-height: 74vh; object-fit: contain; image-rendering: pixelated; }
#stage.smooth img { image-rendering: auto; }
#badge { position: absolute; left: 14px; top: 14px; padding: 5px 12px; border-radius: 99px;
  background: #000b; color: #fff; font-size: .9rem; line-height: 1.4; }
ol { list-style: none; margin: 14px 0 20px; padding: 0; }
li { display: flex; gap: 10px; align-items: baseline; padding: 3px 0; }
li i { flex: none; width: 11px; height: 11px; border-radius: 50%; }
h2 { margin: 0; font-size: 1.1rem; }
.facts button { font: inherit; padding: 8px 16px; border-radius: 8px; border: 0; color: var(--card);
  background: var(--mark); cursor: pointer; }
label { display: block; margin: 14px 0; }
:focus-visible { outline: 3px solid var(--mark); outline-offset: 2px; }
</style>
</head>
<body>
<h1>{heading}</h1>
<p>Click the picture or press <kbd>space</kbd> to flip to the original and back;
<kbd>&larr;</kbd> <kbd>&rarr;</kbd> change the version, <kbd>&uarr;</kbd> <kbd>&darr;</kbd> the picture.</p>
<nav class="row" id="pictures" aria-label="Pictures"></nav>
<main>
<div>
<button id="stage" type="button"><img id="shown" alt=""><span id="badge" aria-live="polite"></span></button>
<nav class="row" id="versions" aria-label="Versions"></nav>
</div>
<div class="facts">
<h2 id="title"></h2><p id="about"></p><ol id="steps"></ol>
<button type="button" id="flip"></button>
<label><input type="checkbox" id="smooth"> Enlarge smoothly</label>
</div>
</main>
<script>
const pictures = {pictures};
const at = id => document.getElementById(id);
let picture = 0, version = 1, flipped = false;

function button(image, text, pressed, act) {
  const b = document.createElement("button"), i = document.createElement("img");
  i.src = image; i.alt = "";
  b.type = "button"; b.append(i, text); b.setAttribute("aria-pressed", pressed); b.onclick = act;
  return b;
}
function show() {
  const p = pictures[picture], chosen = p.versions[version], seen = flipped ? p.versions[0] : chosen;
  at("shown").src = seen.image;
  at("shown").alt = p.name + ", " + seen.title;
  at("badge").textContent = seen.title;
  at("title").textContent = chosen.title;
  at("about").textContent = p.name + ", " + chosen.width + " × " + chosen.height + " pixels"
    + (chosen.note ? "; " + chosen.note : "");
  at("steps").replaceChildren(...chosen.steps.map(step => {
    const li = document.createElement("li"), dot = document.createElement("i");
    dot.style.background = step.colour; dot.title = step.family; li.append(dot, step.text);
    return li;
  }));
  at("flip").textContent = flipped ? "Show " + chosen.title : "Show the original";
  at("versions").replaceChildren(...p.versions.slice(1).map((v, i) =>
    button(v.image, v.title, i + 1 === version, () => choose(i + 1))));
  at("pictures").hidden = pictures.length < 2;
  if (pictures.length > 1) at("pictures").replaceChildren(...pictures.map((q, i) =>
    button(q.versions[0].image, q.name.length > 13 ? q.name.slice(0, 12) + "…" : q.name, i === picture,
      () => go(i))));
}
function choose(i) { version = i; flipped = false; show(); }
function go(i) {
  picture = (i + pictures.length) % pictures.length;
  choose(Math.min(version, pictures[picture].versions.length - 1));
}
function flip() { flipped = !flipped; show(); }
at("stage").onclick = flip;
at("flip").onclick = flip;
at("smooth").onchange = event => at("stage").classList.toggle("smooth", event.target.checked);
document.onkeydown = event => {
  const versions = pictures[picture].versions.length - 1, key = event.key;
  if (key === " " && ["BUTTON", "INPUT"].includes(event.target.tagName)) return;  // theirs
  if (key === " ") flip();
  else if (key === "ArrowRight") choose(version % versions + 1);
  else if (key === "ArrowLeft") choose((version + versions - 2) % versions + 1);
  else if (key === "ArrowDown") go(picture + 1);
  else if (key === "ArrowUp") go(picture - 1);
  else return;
  event.preventDefault();
};
show();
</script>
</body>
</html>
"""
