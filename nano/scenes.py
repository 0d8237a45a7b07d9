"""Synthetic pictures with exact questions and answers: what the nano world sees.

- A Scene is one to five things (kind, color, size) in the cells of a 3x3 grid; no two share both kind and color.
- `draw` paints it at 256x256 with random tilt, stretch, shift, shades, background and specks: pictures never repeat. No pixel noise:
  they stay small as PNG (training adds noise where it wants some).
- `questions` asks one question of every kind; the answer is a full sentence, a function of scene and question alone.
- Scenes are split by what they show: `is_heldout` is a hash of the things, so no training picture shows a held-out scene.
- Every answer uses only SCENE_WORDS, which nano/corpus.py has to teach the Talker to pronounce.
"""
import hashlib
import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIZE = 256  # pixels, both sides
PATCH = 32  # of the vision encoder: it sees 8x8 patches
CELL = SIZE / 3
GRID = SIZE // PATCH
HELDOUT_SHARE = 16  # one scene in so many is never trained on

KINDS = {  # singular -> plural
    "circle": "circles", "square": "squares", "triangle": "triangles", "star": "stars", "heart": "hearts", "house": "houses",
    "tree": "trees", "car": "cars", "fish": "fish", "cup": "cups", "boat": "boats", "flower": "flowers"}
COLORS = {"red": (216, 32, 38), "green": (34, 150, 58), "blue": (36, 78, 210), "yellow": (246, 218, 30), "orange": (246, 138, 22),
          "purple": (136, 44, 166), "black": (26, 26, 28), "white": (250, 250, 250)}
PLACES = ("in the top left corner", "at the top", "in the top right corner", "on the left", "in the middle", "on the right",
          "in the bottom left corner", "at the bottom", "in the bottom right corner")
NUMBERS = ("no", "one", "two", "three", "four", "five")
QUESTION_KINDS = ("color", "count", "kind", "position", "relation", "yes or no", "size", "description")
SCENE_WORDS = tuple(sorted({*KINDS, *KINDS.values(), *COLORS, *NUMBERS, *" ".join(PLACES).split(), *"""
    a an and above are below big bigger color first i is it left nothing of picture right see shows size small smaller than the then
    there thing things yes """.split()}))  # of all answers
QUESTION_WORDS = tuple("count describe do does have how look many or this what where which you".split())  # what only questions say
BACKGROUNDS = ((206, 206, 210), (222, 208, 184), (186, 208, 224), (196, 220, 196), (224, 196, 204), (172, 176, 184), (214, 214, 190))


@dataclass(frozen=True)
class Thing:
    kind: str  # one of KINDS
    color: str  # one of COLORS
    big: bool
    cell: int  # 0-8, row by row

    @property
    def row(self):
        return self.cell // 3

    @property
    def column(self):
        return self.cell % 3

    @property
    def size(self):
        return "big" if self.big else "small"


@dataclass(frozen=True)
class Scene:
    things: tuple[Thing, ...]  # by cell

    def is_heldout(self):
        """Whether this scene is kept for testing, for every trainer alike."""
        return int(hashlib.sha256(repr(self.things).encode()).hexdigest(), 16) % HELDOUT_SHARE == 0


def draw_scene(rng, heldout=False):
    """A random Scene of the wanted split. `rng` is a numpy Generator."""
    while True:
        scene = _any_scene(rng)
        if scene.is_heldout() == heldout:
            return scene


def _any_scene(rng):
    cells = rng.choice(9, size=rng.integers(1, 6), replace=False)
    things = []
    for cell in cells:
        while True:
            kind, color = _pick(rng, list(KINDS)), _pick(rng, list(COLORS))
            if things and rng.random() < 0.4:  # repetitions, so that counting is more than looking for one
                other = things[rng.integers(len(things))]
                kind, color = (other.kind, color) if rng.random() < 0.6 else (kind, other.color)
            if all((kind, color) != (thing.kind, thing.color) for thing in things):
                break
        things.append(Thing(kind, color, bool(rng.random() < 0.5), int(cell)))
    return Scene(tuple(sorted(things, key=lambda thing: thing.cell)))


def _pick(rng, options):
    return options[rng.integers(len(options))]


# drawing: a kind is a list of polygons in the box [-1, 1] x [-1, 1], y downwards, each with the role of its color


def _round(x, y, rx, ry=None, points=24):
    angle = np.linspace(0, 2 * math.pi, points, endpoint=False)
    return np.stack([x + rx * np.cos(angle), y + (ry or rx) * np.sin(angle)], 1)


def _box(left, top, right, bottom):
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def _star():
    angle = np.arange(10) * math.pi / 5 - math.pi / 2
    radius = np.where(np.arange(10) % 2, 0.43, 1.05)[:, None]
    return radius * np.stack([np.cos(angle), np.sin(angle)], 1)


def _heart():
    t = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y - 2.5], 1) / 16


def _flower():
    angle = np.arange(5) * 2 * math.pi / 5 - math.pi / 2
    petals = [("main", _round(0.5 * math.cos(a), 0.5 * math.sin(a) - 0.2, 0.34)) for a in angle]
    return [("stem", _box(-0.08, 0.2, 0.08, 1)), *petals, ("light", _round(0, -0.2, 0.24))]


SHAPES = {
    "circle": [("main", _round(0, 0, 0.95, points=48))],
    "square": [("main", _box(-0.86, -0.86, 0.86, 0.86))],
    "triangle": [("main", np.array([(0, -0.95), (1, 0.85), (-1, 0.85)]))],
    "star": [("main", _star())],
    "heart": [("main", _heart())],
    "house": [("main", _box(-0.72, -0.15, 0.72, 0.95)), ("shade", np.array([(-1, -0.1), (0, -0.98), (1, -0.1)])),
              ("light", _box(-0.5, 0.1, -0.12, 0.45)), ("dark", _box(0.12, 0.3, 0.48, 0.95))],
    "tree": [("wood", _box(-0.16, 0.2, 0.16, 1)), ("main", _round(-0.42, 0.0, 0.48)), ("main", _round(0.42, 0.0, 0.48)),
             ("main", _round(0, -0.45, 0.54))],
    "car": [("main", np.array([(-0.55, -0.55), (0.4, -0.55), (0.68, 0), (-0.75, 0)])), ("main", _box(-1, -0.05, 1, 0.42)),
            ("light", np.array([(-0.45, -0.42), (-0.1, -0.42), (-0.1, -0.06), (-0.58, -0.06)])),
            ("light", np.array([(0.02, -0.42), (0.33, -0.42), (0.5, -0.06), (0.02, -0.06)])),
            ("dark", _round(-0.55, 0.45, 0.26)), ("dark", _round(0.55, 0.45, 0.26))],
    "fish": [("shade", np.array([(0.4, 0), (1, -0.5), (0.85, 0), (1, 0.5)])), ("main", _round(-0.2, 0, 0.8, 0.48)),
             ("light", _round(-0.62, -0.1, 0.13)), ("dark", _round(-0.64, -0.1, 0.06))],
    "cup": [("main", _round(0.52, -0.05, 0.45)), ("hole", _round(0.52, -0.05, 0.25)),
            ("main", np.array([(-0.9, -0.75), (0.5, -0.75), (0.32, 0.8), (-0.72, 0.8)])), ("shade", _round(-0.2, -0.75, 0.7, 0.14))],
    "boat": [("dark", _box(-0.06, -1, 0.06, 0.4)), ("main", np.array([(0.1, -0.9), (0.1, 0.2), (0.85, 0.2)])),
             ("shade", np.array([(-0.1, -0.7), (-0.1, 0.2), (-0.7, 0.2)])),
             ("main", np.array([(-1, 0.35), (1, 0.35), (0.62, 0.9), (-0.62, 0.9)]))],
    "flower": _flower(),
}
FLIPPED = ("car", "fish", "cup", "boat", "house")  # may look either way
ROLES = {"dark": (44, 40, 44), "light": (238, 234, 214), "wood": (112, 74, 44), "stem": (56, 104, 60)}


def draw(scene, rng):
    """Paint a scene: (PIL RGB image of 256x256, boxes (N, 3) float32 of center x, center y, half size in pixels, in thing order)."""
    scale = 2  # painted larger and averaged down, for smooth edges
    background = np.array(_pick(rng, BACKGROUNDS)) + rng.integers(-10, 11, 3)
    slope = np.linspace(-0.5, 0.5, SIZE * scale)[:, None] * rng.integers(-24, 25)
    rows = np.clip(background + slope, 0, 255).astype(np.uint8)
    image = Image.fromarray(rows[:, None]).resize((SIZE * scale, SIZE * scale), Image.Resampling.NEAREST)
    painter = ImageDraw.Draw(image)
    for x, y in rng.uniform(0, SIZE * scale, (rng.integers(0, 13), 2)):
        radius, shade = rng.uniform(1.5, 4), background + rng.integers(-40, 41)
        painter.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_rgb(shade))
    boxes = []
    for thing in scene.things:
        half = rng.uniform(36, 41) if thing.big else rng.uniform(21, 25)
        room = 2.0 if thing.big else 12.0
        center = (np.array([thing.column, thing.row]) + 0.5) * CELL + rng.uniform(-room, room, 2)
        _paint(painter, thing, center * scale, half * scale, background, rng)
        boxes.append((*center, half))
    return image.reduce(scale), np.array(boxes, np.float32)


def _paint(painter, thing, center, half, background, rng):
    tilt = rng.uniform(-0.22, 0.22)
    stretch = half * rng.uniform(0.9, 1.0, 2) * (-1 if thing.kind in FLIPPED and rng.random() < 0.5 else 1, 1)
    turn = np.array([(math.cos(tilt), math.sin(tilt)), (-math.sin(tilt), math.cos(tilt))])
    main = np.array(COLORS[thing.color]) + rng.integers(-12, 13, 3)
    colors = {"main": main, "shade": main * 0.7, "hole": background} | {role: np.array(value) for role, value in ROLES.items()}
    for role, points in SHAPES[thing.kind]:
        outline = _rgb(main * 0.5) if role in ("main", "shade") else None
        painter.polygon([tuple(point) for point in center + (points * stretch) @ turn], fill=_rgb(colors[role]), outline=outline, width=2)


def _rgb(values):
    return tuple(int(value) for value in np.clip(values, 0, 255))


def png(image):
    """A picture as PNG bytes (a few kilobytes)."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


# questions


def article(noun):
    return f"an {noun}" if noun[0] in "aeio" else f"a {noun}"


def name(thing, things):
    """The shortest unique name: "star", or "red star" where there are several stars."""
    return thing.kind if sum(other.kind == thing.kind for other in things) == 1 else f"{thing.color} {thing.kind}"


def seen(thing):
    """What one sees: "a red star"."""
    return article(f"{thing.color} {thing.kind}")


def questions(scene, rng):
    """One question of every kind the scene allows, in QUESTION_KINDS order: [(question, answer, kind)].

    `rng` chooses among the possible questions; equal questions about a scene always get the equal answer. Answers have 3-14 words.
    """
    makers = (_color, _count, _kind, _position, _relation, _yes_no, _size, _description)
    found = []
    for kind, maker in zip(QUESTION_KINDS, makers):
        options = maker(scene.things, rng)
        if options:
            question, answer = _pick(rng, options)
            found.append((question[0].upper() + question[1:], answer[0].upper() + answer[1:], kind))
    return found


def _color(things, rng):
    found = []
    for thing in things:
        alike = [other for other in things if other.kind == thing.kind]
        if len(alike) > 1 and sum(other.big == thing.big for other in alike) > 1:
            continue  # neither kind nor size tells which one is meant
        which = thing.kind if len(alike) == 1 else f"{thing.size} {thing.kind}"
        found += [(f"what color is the {which}?", f"the {which} is {thing.color}."),
                  (f"which color does the {which} have?", f"the color of the {which} is {thing.color}."),
                  (f"look at the {which}. What color is it?", f"it is {thing.color}, the {which} is {thing.color}.")]
    return found


def _count(things, rng):
    found = [("how many things are there?", f"there {_number(len(things), 'thing', 'things')} in the picture."),
             ("count the things in the picture.", f"the picture shows {NUMBERS[len(things)]} {'thing' if len(things) == 1 else 'things'}.")]
    for kind in dict.fromkeys([*(thing.kind for thing in things), _pick(rng, list(KINDS))]):
        number = sum(thing.kind == kind for thing in things)
        pair = f"how many {KINDS[kind]} are there?", f"there {_number(number, kind, KINDS[kind])} in the picture."
        found += [pair] * min(1 + number, 3)  # several of a kind are rare, and asked for more often
    for color in dict.fromkeys([*(thing.color for thing in things), _pick(rng, list(COLORS))]):
        number = sum(thing.color == color for thing in things)
        thing_word = "thing" if number == 1 else "things"
        found += [(f"how many {color} things do you see?", f"I see {NUMBERS[number]} {color} {thing_word}.")] * min(1 + number, 3)
    return found


def _number(number, one, many):
    return f"is one {one}" if number == 1 else f"are {NUMBERS[number]} {many}"


def _kind(things, rng):
    at = {thing.cell: thing for thing in things}
    empty = _pick(rng, [cell for cell in range(9) if cell not in at])
    found = [(f"what is {PLACES[empty]}?", f"there is nothing {PLACES[empty]}.")]
    for thing in things:
        place = PLACES[thing.cell]
        found += [(f"what is {place}?", f"there is {seen(thing)} {place}."),
                  (f"what do you see {place}?", f"I see {seen(thing)} {place}.")]
        if sum(other.color == thing.color for other in things) == 1:
            found += [(f"what is the {thing.color} thing?", f"the {thing.color} thing is {article(thing.kind)}.")] * 2
    return found


def _position(things, rng):
    found = []
    for thing in things:
        which = name(thing, things)
        found += [(f"where is the {which}?", f"the {which} is {PLACES[thing.cell]}."),
                  (f"where do you see the {which}?", f"I see the {which} {PLACES[thing.cell]}.")]
    return found


def _relations(a, b):
    """How a lies relative to b: some of "left of", "right of", "above", "below"."""
    across = {-1: ["left of"], 0: [], 1: ["right of"]}[int(np.sign(a.column - b.column))]
    down = {-1: ["above"], 0: [], 1: ["below"]}[int(np.sign(a.row - b.row))]
    return across + down


def _relation(things, rng):
    found = []
    for b in things:
        which = name(b, things)
        others = [thing for thing in things if thing is not b]
        for relation in ("left of", "right of", "above", "below"):
            there = [thing for thing in others if relation in _relations(thing, b)]
            if len(there) == 1:
                found += [(f"what is {relation} the {which}?", f"there is {seen(there[0])} {relation} the {which}."),
                          (f"which thing is {relation} the {which}?", f"it is {seen(there[0])}.")]
            elif not there and others:
                found.append((f"what is {relation} the {which}?", f"there is nothing {relation} the {which}."))
        for a in others:
            for relation in _relations(a, b):
                pair = "left of or right of" if relation.endswith("of") else "above or below"
                found.append((f"is the {name(a, things)} {pair} the {which}?", f"the {name(a, things)} is {relation} the {which}."))
    return found


def _yes_no(things, rng):
    thing = things[rng.integers(len(things))]
    which = name(thing, things)
    absent = _pick(rng, [kind for kind in KINDS if all(other.kind != kind for other in things)])
    wrong = _pick(rng, [color for color in COLORS if all(other.color != color for other in things if other.kind == thing.kind)])
    yes = [(f"is there {article(thing.kind)}?", f"yes, there is {article(thing.kind)}."),
           (f"do you see {seen(thing)}?", f"yes, I see {seen(thing)}.")]
    no = [(f"is there {article(absent)}?", f"no, there is no {absent}."),
          (f"do you see {article(wrong)} {thing.kind}?", f"no, there is no {wrong} {thing.kind}.")]
    if which == thing.kind:
        yes.append((f"is the {which} {thing.color}?", f"yes, the {which} is {thing.color}."))
        no.append((f"is the {which} {wrong}?", f"no, the {which} is {thing.color}."))
    for other in things:
        them = name(other, things)
        for relation in _relations(thing, other):
            opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}[relation]
            yes.append((f"is the {which} {relation} the {them}?", f"yes, the {which} is {relation} the {them}."))
            no.append((f"is the {which} {opposite} the {them}?", f"no, the {which} is {relation} the {them}."))
    return [_pick(rng, yes)] if rng.random() < 0.5 else [_pick(rng, no)]


def _size(things, rng):
    found = []
    for thing in things:
        which = name(thing, things)
        found += [(f"is the {which} big or small?", f"the {which} is {thing.size}."),
                  (f"what size is the {which}?", f"the size of the {which} is {thing.size}.")]
        for other in things:
            if thing.big and not other.big:
                pair = [which, name(other, things)]
                ask = " or the ".join(pair if rng.random() < 0.5 else reversed(pair))
                found += [(f"which is bigger, the {ask}?", f"the {pair[0]} is bigger than the {pair[1]}."),
                          (f"which is smaller, the {ask}?", f"the {pair[1]} is smaller than the {pair[0]}.")]
    return found


def _description(things, rng):
    """All of up to three things in reading order; of more only the first two, so that the sentence stays short."""
    names = [seen(thing) for thing in things]
    if len(names) > 3:
        answer = f"I see {NUMBERS[len(names)]} things, first {names[0]} and then {names[1]}."
    else:
        answer = "I see " + ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1] + "."
    return [(question, answer) for question in ("describe the picture.", "what do you see in the picture?", "what is in this picture?")]


def told(scene):
    """The whole scene in words: what a model without eyes needs to answer the same questions."""
    parts = [f"{article(f'{thing.size} {thing.color} {thing.kind}')} {PLACES[thing.cell]}" for thing in scene.things]
    return "There is " + ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1] + "."


def answer_sentences(count, rng):
    """`count` distinct training answers, for nano/corpus.py to have them read aloud."""
    found = {}
    while len(found) < count:
        for _, answer, _ in questions(draw_scene(rng), rng):
            found[answer] = None
    return list(found)[:count]


# ---- pictures by number, and what is asked about them

def picture_rng(seed, heldout, number):
    """The generator of picture `number`: it draws the scene, then paints it."""
    return np.random.default_rng((seed, int(heldout), number))


def plan(count, per_picture, heldout, seed):
    """`count` items {"question", "answer", "kind", "told", "picture"}, `per_picture` of different kinds about each picture."""
    items, number = [], 0
    while len(items) < count:
        scene = draw_scene(picture_rng(seed, heldout, number), heldout)
        rng = np.random.default_rng((seed, int(heldout), number, 1))
        found = questions(scene, rng)
        for i in rng.permutation(len(found))[:min(per_picture, count - len(items))]:
            question, answer, kind = found[i]
            items.append({"question": question, "answer": answer, "kind": kind, "told": told(scene), "picture": number})
        number += 1
    return items


def paint(seed, heldout, number):
    """PNG bytes of picture `number`, the one that `plan` asks about."""
    rng = picture_rng(seed, heldout, number)
    return png(draw(draw_scene(rng, heldout), rng)[0])
