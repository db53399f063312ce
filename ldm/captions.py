"""Captions for named drawings: label, other words, style, colour and ground, in English and Chinese."""

import re
from dataclasses import dataclass

import numpy as np

# Set of drawings -> the words by which a prompt asks for its style.
STYLES: dict[str, tuple[str, str]] = {
    "noto": ("noto", "谷歌"),
    "noto-v1": ("classic noto", "经典"),
    "twemoji": ("twemoji", "推特"),
    "openmoji": ("outline", "线条"),
    "fluent-emoji": ("glossy", "立体"),
    "fluent-emoji-flat": ("flat", "扁平"),
    "emojione": ("emojione", "圆润"),
    "fxemoji": ("firefox", "火狐"),
    "tuxpaint-stamps-default": ("stamp", "图章"),
}

# Hues in OpenCV's degrees / 2, that is 0 to 179.
HUES: dict[str, float] = {
    "red": 0,
    "orange": 14,
    "yellow": 25,
    "green": 60,
    "blue": 108,
    "purple": 139,
    "pink": 165,
}

GROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (24, 24, 28),
    "grey": (168, 170, 176),
    "red": (214, 72, 68),
    "orange": (244, 162, 80),
    "yellow": (250, 220, 104),
    "green": (112, 182, 110),
    "blue": (96, 152, 222),
    "purple": (158, 116, 200),
    "pink": (244, 172, 196),
}

CHINESE_COLOURS = {
    "white": "白色", "black": "黑色", "grey": "灰色", "red": "红色", "orange": "橙色", "yellow": "黄色",
    "green": "绿色", "blue": "蓝色", "purple": "紫色", "pink": "粉色",
}  # fmt: skip

# What a stated colour replaces in a name: "a blue apple" of the green apple. A red envelope is 红包 in any colour.
COLOUR_OF_ITS_OWN = re.compile(rf"\b(light )?({'|'.join(CHINESE_COLOURS)}|brown) ")
COLOUR_OF_ITS_OWN_ZH = re.compile("^[浅粉]?[红橙黄绿青蓝紫粉棕褐黑白灰](?!包)(色的?)?")

# Beginnings of words whose article their first letter does not tell: a unicorn, an hourglass.
CONSONANT_SOUNDS = (
    "eu", "ewe", "once", "one", "ufo", "uk", "unic", "unif", "unio", "unis", "unit", "univ", "usa", "use", "usu", "ute",
    "uti",
)  # fmt: skip
SILENT_H = ("heir", "honest", "honor", "honour", "hour")


@dataclass(frozen=True)
class Drawing:
    """What is known of one drawing. `hue` names its single natural colour, if it has one."""

    label: str
    style: str
    words: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    label_zh: str = ""
    tags_zh: tuple[str, ...] = ()
    words_zh: tuple[str, ...] = ()
    everyday: bool = False
    held_out: bool = False
    hue: str | None = None


def article(noun: str) -> str:
    """`noun` with its indefinite article, or with none where it looks like a plural."""
    if noun.endswith("s") and not noun.endswith(("ss", "us", "bus")):
        return noun
    lower = noun.lower()
    vowel = lower.startswith(SILENT_H) or (lower[0] in "aeiou" and not lower.startswith(CONSONANT_SOUNDS))
    return ("an " if vowel else "a ") + noun


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def english(rng: np.random.Generator, drawing: Drawing, colour: str | None, ground: str) -> str:
    """A caption in English. `colour` is stated if given; the ground and the style only now and then."""
    noun = _pick(rng, (drawing.label, *drawing.words)) if drawing.words else drawing.label
    if colour:
        noun = f"{colour} {COLOUR_OF_ITS_OWN.sub('', noun)}"
    text = article(noun) if rng.random() < 0.7 else noun
    if drawing.tags and rng.random() < 0.15:
        chosen = rng.permutation(len(drawing.tags))[: int(rng.integers(1, 4))]
        text += ", " + ", ".join(drawing.tags[i] for i in chosen)
    if rng.random() < 0.4:
        style = STYLES[drawing.style][0]
        text = f"{text} in {style} style" if rng.random() < 0.7 else f"{text}, {style} style"
    if rng.random() < (0.3 if ground == "white" else 0.8):
        text += f" on {article(ground)} background"
    return text


def chinese(rng: np.random.Generator, drawing: Drawing, colour: str | None, ground: str) -> str:
    """The same in Chinese."""
    colourless = colour and drawing.words_zh  # a label may have a colour of its own
    noun = _pick(rng, drawing.words_zh if colourless else (drawing.label_zh, *drawing.words_zh))
    if colour:
        coloured = COLOUR_OF_ITS_OWN.match(drawing.label)  # a cucumber's 黄 is not its colour
        noun = CHINESE_COLOURS[colour] + "的" + (COLOUR_OF_ITS_OWN_ZH.sub("", noun) if coloured else noun)
    text = ("一个" + noun) if rng.random() < 0.4 else noun
    if drawing.tags_zh and rng.random() < 0.15:
        text += "，" + _pick(rng, drawing.tags_zh)
    if rng.random() < 0.4:
        text = f"{STYLES[drawing.style][1]}风格的{text}"
    if rng.random() < (0.3 if ground == "white" else 0.8):
        text += f"，{CHINESE_COLOURS[ground]}背景"
    return text


def caption(rng: np.random.Generator, drawing: Drawing, colour: str | None, ground: str) -> str:
    """A caption in English or, one time in four, in Chinese."""
    if drawing.label_zh and rng.random() < 0.25:
        return chinese(rng, drawing, colour, ground)
    return english(rng, drawing, colour, ground)
