"""Captions of the shapes of a dataset, in several wordings, from what is known about them.

Those of procedural shapes are made from their facts, such as {"arms": "yes"}, those of other models from their titles.
"""

import hashlib
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from sparsevox import checks
from xcube.data.dataset import Entry
from xcube.data.furniture import furniture_category, model_name
from xcube.procedural.shapes import FAMILIES, make_shape

Place = Literal["noun", "before", "after"]


@dataclass(frozen=True)
class Wording:
    """How captions express one value of a fact.

    place: "noun" replaces the name of the family, "before" is an adjective before it, "after" follows "with" or "on".
    phrases: Ways to say it.
    """

    place: Place
    phrases: tuple[str, ...]


def _noun(*phrases: str) -> Wording:
    return Wording("noun", phrases)


def _before(*phrases: str) -> Wording:
    return Wording("before", phrases)


def _after(*phrases: str) -> Wording:
    return Wording("after", phrases)


# The facts of each family, their values, and the wordings of those values that captions express.
FACTS: Mapping[str, Mapping[str, Mapping[str, Wording | None]]] = MappingProxyType(
    {
        "chair": {
            "arms": {"yes": _after("arms", "armrests", "two arms"), "no": _after("no arms", "no armrests")},
            "back": {
                "none": _noun("stool", "seat without a back"),
                "solid": _after("a solid back", "a closed back"),
                "arched": _after("an arched back"),
                "slatted": _after("a slatted back", "slats in the back", "bars in the back"),
                "open": _after("an open back", "a framed back"),
                "round": _after("a round back", "a curved back"),
            },
            "base": {
                "legs": _after("four legs", "legs"),
                "pedestal": _after("a pedestal", "a single column", "one leg"),
                "swivel": _after("wheels", "casters", "a swivel base"),
                "sledge": _after("a sled base", "runners", "bent tubes"),
                "panels": _after("side panels", "panels for legs"),
            },
            "height": {"tall": _before("tall", "high", "bar"), "normal": None},
            "width": {"narrow": _before("narrow", "slim"), "wide": _before("wide", "broad")},
            "legs": {"thin": _after("thin legs", "slender legs"), "thick": _after("thick legs", "heavy legs")},
        },
        "table": {
            "use": {
                "dining": _before("dining", "large"),
                "coffee": _before("coffee", "low"),
                "side": _before("side", "small"),
                "bar": _before("bar", "high", "tall"),
                "desk": _noun("desk", "writing desk", "desk with drawers"),
            },
            "top": {
                "rectangular": _before("rectangular"),
                "round": _before("round", "circular"),
                "oval": _before("oval"),
                "octagon": _after("an octagonal top", "a top with eight corners"),
                "hexagon": _after("a hexagonal top", "a top with six corners"),
                "boat": _after("a boat-shaped top", "a pointed top"),
            },
            "base": {
                "legs": _after("four legs", "legs"),
                "column": _after("a central column", "a pedestal", "one leg"),
                "columns": _after("two columns", "two pedestals"),
                "panels": _after("side panels", "panels for legs"),
                "trestle": _after("trestles", "a trestle base"),
                "crossed": _after("crossed legs", "x-shaped legs"),
                "desk": None,
            },
            "shelf": {"yes": _after("a shelf", "a shelf below"), "no": None},
            "legs": {"thin": _after("thin legs", "slender legs"), "thick": _after("thick legs", "heavy legs")},
        },
        "sofa": {
            "type": {
                "sofa": _noun("sofa", "couch"),
                "corner": _noun("corner sofa", "l-shaped sofa", "corner couch"),
                "bench": _noun("bench"),
            },
            "arms": {"yes": _after("arms", "armrests"), "no": _after("no arms", "no armrests")},
            "feet": {"yes": _after("short legs", "feet"), "no": _after("no legs", "no feet")},
            "width": {"small": _before("small", "narrow"), "wide": _before("wide", "long")},
            "back": {"yes": _after("a back", "a backrest"), "no": _after("no back", "no backrest")},
        },
        "lamp": {
            "type": {
                "table": _before("table", "bedside"),
                "floor": _before("floor", "standing"),
                "hanging": _before("hanging", "ceiling", "pendant"),
                "chandelier": _noun("chandelier", "ceiling lamp with arms"),
                "desk": _before("desk", "reading"),
                "arc": _before("arc", "arched floor"),
            },
            "shade": {
                "cone": _after("a conical shade", "a cone shade"),
                "drum": _after("a drum shade", "a cylindrical shade"),
                "bell": _after("a bell shade", "a bell-shaped shade"),
                "dome": _after("a dome shade", "a domed shade"),
                "globe": _after("a globe", "a round shade", "a ball shade"),
                "box": _after("a square shade", "a box shade"),
                "pagoda": _after("a pagoda shade", "a pointed shade"),
            },
            "stand": {
                "legs": _after("legs", "a stand with legs"),
                "plate": _after("a flat base", "a plate base"),
                "cross": _after("a cross base", "a cross-shaped base"),
            },
        },
        "airplane": {
            "type": {
                "airliner": _noun("airliner", "passenger plane", "jet airliner"),
                "fighter": _noun("fighter jet", "fighter plane"),
                "propeller": _noun("propeller plane", "propeller aircraft"),
                "glider": _noun("glider", "sailplane"),
                "biplane": _noun("biplane", "plane with two pairs of wings"),
            },
            "tail": {
                "low": None,
                "t": _after("a t-tail", "a high tailplane"),
                "v": _after("a v-tail"),
                "twin": _after("twin fins", "two fins"),
            },
            "engines": {
                "two": _after("two engines"),
                "four": _after("four engines"),
                "rear": _after("engines at the rear", "rear engines"),
                "nose": _after("one engine", "one propeller"),
                "wings": _after("two propellers", "propellers on the wings"),
            },
            "wings": {"delta": _after("delta wings", "triangular wings"), "swept": _after("swept wings")},
            "wheels": {"yes": _after("landing gear", "wheels"), "no": None},
        },
        "car": {
            "type": {
                "sedan": _noun("sedan", "saloon car"),
                "hatchback": _noun("hatchback", "small car", "compact car"),
                "suv": _noun("suv", "off-road car", "jeep"),
                "van": _noun("van", "minivan", "delivery van"),
                "pickup": _noun("pickup", "pickup truck"),
                "sports": _noun("sports car", "race car"),
                "bus": _noun("bus", "coach"),
                "truck": _noun("truck", "lorry"),
            },
            "load": {
                "box": _after("a box", "a closed box"),
                "flat": _after("a flat bed", "an open bed"),
                "tank": _after("a tank"),
            },
            "roof": {"yes": None, "no": _after("no roof", "an open top")},
        },
        "bed": {
            "type": {
                "framed": _noun("bed", "bed with a frame"),
                "box": _noun("box bed", "storage bed"),
                "platform": _noun("platform bed", "low bed"),
                "sleigh": _noun("sleigh bed"),
                "canopy": _noun("canopy bed", "four-poster bed", "bed with a canopy"),
                "posts": _noun("four-poster bed", "bed with four posts"),
                "bunk": _noun("bunk bed", "double-decker bed"),
                "crib": _noun("crib", "baby bed"),
            },
            "width": {"single": _before("single", "narrow"), "double": _before("double", "wide")},
            "headboard": {"yes": _after("a headboard"), "no": _after("no headboard")},
            "footboard": {"yes": _after("a footboard"), "no": _after("no footboard")},
        },
        "cabinet": {
            "type": {
                "chest": _noun("chest of drawers", "dresser", "commode"),
                "wardrobe": _noun("wardrobe", "closet", "armoire"),
                "bookshelf": _noun("bookshelf", "bookcase", "set of shelves"),
                "sideboard": _noun("sideboard", "low cabinet"),
                "bedside": _noun("bedside cabinet", "nightstand", "bedside table"),
                "display": _noun("display cabinet", "china cabinet"),
                "wall": _noun("wall unit", "tv unit"),
                "kitchen": _noun("kitchen cabinet", "kitchen"),
            },
            "width": {"narrow": _before("narrow", "slim"), "wide": _before("wide", "broad")},
            "feet": {
                "yes": _after("legs", "feet"),
                "no": _after("no legs", "no feet"),
                "plinth": _after("a plinth", "a closed base"),
            },
        },
    }
)

NOUNS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"airplane": ("airplane", "plane", "aircraft"), "car": ("car", "vehicle"), "sofa": ("sofa", "couch")}
)

WORDINGS = 8
MENTIONED = 0.6  # how often a caption mentions each fact
PRECISE = ("chair", "table", "sofa", "car")  # families whose name fits badly where another noun does, such as "bench"


@dataclass(frozen=True)
class Caption:
    """A caption of a shape.

    text: The caption, in lowercase.
    facts: The facts that it mentions.
    """

    text: str
    facts: Mapping[str, str]


def caption(family: str, facts: Mapping[str, str], seed: int, mentioned: float = MENTIONED) -> Caption:
    """Make a caption of a shape that mentions some of its facts.

    Args:
        family: One of `FAMILIES`.
        facts: The facts of a `ProceduralShape`.
        seed: Seed of what is mentioned, and how.
        mentioned: Probability that a fact is mentioned.

    Raises:
        ValueError: If the family or a fact is unknown.
    """
    if family not in FACTS:
        raise ValueError(f"family must be one of {', '.join(FACTS)}, got {family!r}")
    table = FACTS[family]
    unknown = [f"{name}={value}" for name, value in facts.items() if value not in table.get(name, {})]
    if unknown:
        raise ValueError(f"facts must be among those of {family!r} in FACTS, got {', '.join(unknown)}")
    choose = random.Random(f"{family} {seed}")
    wordings = {name: wording for name, value in facts.items() if (wording := table[name][value]) is not None}
    named = {name for name, wording in wordings.items() if wording.place == "noun" and family in PRECISE}
    chosen = {name: each for name, each in wordings.items() if choose.random() < mentioned or name in named}
    noun = choose.choice(NOUNS.get(family, (family,)))
    before, after = list[str](), list[str]()
    for wording in chosen.values():
        phrase = choose.choice(wording.phrases)
        if wording.place == "noun":
            noun = phrase
        else:
            (before if wording.place == "before" else after).append(phrase)
    if family == "chair" and "arms" in chosen and facts["arms"] == "yes" and choose.random() < 0.5:
        noun, after = "armchair", [phrase for phrase in after if phrase not in chosen["arms"].phrases]
    choose.shuffle(before)
    choose.shuffle(after)
    text = " ".join([*before, noun])
    if choose.random() < 0.7:
        text = with_article(text)
    if after:
        join = choose.choice((" with ", ", "))
        text += join + (" and ".join(after) if len(after) < 3 else ", ".join(after[:-1]) + " and " + after[-1])
    return Caption(text, {name: facts[name] for name in chosen})


def with_article(text: str) -> str:
    """Put "a" or "an" before a text, by its sound."""
    return f"{'an' if re.match(r'[aeio]|u(?!ni|se)|suv|l-', text) else 'a'} {text}"


def captions_of(entry: Entry, wordings: int = WORDINGS, seed: int = 0) -> list[str]:
    """Make captions of a shape, the same ones for all changed copies of a model, without repetitions.

    Those of a procedural shape mention some of its facts. Those of a model are its title and its category. A shape of
    which nothing is known has none.

    Args:
        entry: The shape.
        wordings: Maximum number of captions.
        seed: Random seed of what is mentioned, and how.

    Raises:
        TypeError: If `wordings` or `seed` is not an integer.
        ValueError: If `wordings` is not positive.
    """
    if checks.integer("wordings", wordings) < 1:
        raise ValueError(f"wordings must be at least 1, got {wordings}")
    digest = hashlib.sha256(f"{checks.integer('seed', seed)}\0{model_name(entry.name)}".encode()).digest()
    first = int.from_bytes(digest[:6], "big") * wordings
    found = re.fullmatch(r"(?:.*/)?([a-z]+)-([0-9]{6})", entry.name)
    if found is not None and found[1] in FAMILIES:
        facts = make_shape(found[1], int(found[2])).facts
        return list(dict.fromkeys(caption(found[1], facts, first + n).text for n in range(wordings)))
    title = " ".join(re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)*", entry.about.title.lower()))
    category = furniture_category(entry.about.title)
    known = [text for text in (title, category) if text]
    every = [each for text in known for each in (with_article(text), text)]
    random.Random(first).shuffle(every)
    return list(dict.fromkeys(every))[:wordings]
