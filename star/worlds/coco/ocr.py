"""Lettering prompts of the real task: Flow-GRPO's published captions (arXiv 2505.05470), or generated ones like them (ours).

Each caption quotes one target. Core content (ours): everything quoted, and the noun that carries the target.
"""

import re

import numpy as np

from star.config import Prompts
from star.prompts import core
from star.prompts.quotes import quotations
from star.prompts.record import Prompt, Span
from star.worlds.coco import published

_CARRIERS = """
    ad advertisement airplane alert app apron arch armor artwork awning axe backdrop backpack badge bag ball balloon banner
    barrel barrier beam bed bell belt bench bib bike billboard blackboard blade blanket blimp blueprint board boat book
    booklet bookmark boot booth bottle boulder bowl box bracelet bread brick bridge brochure bubble bucket buckle building
    bumper bus button cabin cabinet cage cake calendar camera candy canvas cap cape capsule car card cartridge case cauldron
    ceiling certificate chair chalkboard chart chest cigarette clapperboard clock coat cockpit coin collar console container
    cookie counter countertop cover crate crest cryopod cup curtain dashboard decal deck desk device diagram dial diary
    diploma display document dome door doormat doorway drone drum embroidery engine envelope exhibit extinguisher eyepatch
    facade fence figurine file flag flask flip-flop floor flyer folder footprint fountain fridge gate gauge gavel glass
    globe glove gravestone guitar gun hat hatch headline headphones headstone helmet hologram hood hoodie hull imprint
    installation interface invitation jacket jar jersey journal jukebox kettle key keyboard keycard keychain kiosk kite
    label lamp lantern laptop leaflet letter lid lighthouse list loaf locker locket logbook logo machine magazine mailbox
    manual manuscript map marker marquee mask mat medal menu meter microwave mirror mitt monitor monument mug mural
    nameplate nametag napkin necklace newspaper note notebook notification onesie oven overlay package packaging packet page
    painting palette pamphlet panel paper parchment patch pavement pen pendant phone pillar pillow placard placemat plank
    plaque plate pocket podium postcard poster pot pump puzzle racket radio receipt record refrigerator ribbon ring road
    robe robot rock rocket rug ruler sack saddle sail sand sash scarf scoreboard screen screensaver scroll sculpture seal
    sheet shelf shell shield ship shirt shoe sidewalk sign signboard signpost siren skateboard slab slate sleeve slip
    smartphone smartwatch snowbank spacecraft spaceship spacesuit speaker staff stall stamp statue sticker stone storefront
    stub submarine suit suitcase surfboard sweater sword t-shirt tablet tag tank tape tattoo taxi teapot telescope
    television tent test thermometer ticket tile timer toaster tomb tombstone topper totem touchscreen towel tower tracker
    train tray tree truck trunk tube tv typewriter umbrella uniform van vest vial visor wall wallet watch webpage website
    wheel whiteboard window wrapper wristband wristwatch
"""
CARRIERS = frozenset(_CARRIERS.split())
_OTHERS = ("displays", "letters")  # a verb, and the lettering itself
_WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*(?!['’\w])")  # not "baker's", which owns the carrier
_SENTENCE = re.compile(r"[.!?]\s+")

_TRAIN_PROMPTS, _TEST_PROMPTS = 19_653, 1018  # as many as are published
_STYLES = ("A realistic photograph of", "A cinematic shot of", "A vintage illustration of", "A detailed view of")
_SCENES = """
    a busy city street at dusk: glowing neon sign / a quiet mountain trail: weathered wooden signpost /
    a small bakery: dusty chalkboard / a crowded stadium: digital scoreboard /
    a highway through the desert: large billboard / a railway station: departure board /
    an old library: leather-bound book / a detective's office: worn case folder / a farmers market: handwritten price tag /
    a science laboratory: glass bottle / a birthday party: frosted cake / a pirate cove at sunset: tattered flag /
    a cozy coffee shop: ceramic mug / a rainy alley: colorful mural / a space station: blinking control panel /
    a medieval feast: embroidered banner / a hospital ward: plastic wristband / a film set: black clapperboard /
    a theater at night: lit marquee / a garden in spring: paper seed packet / a school corridor: bold poster /
    a sunlit kitchen: linen apron / a boxing gym: red leather glove / an airport hall: luggage label /
    a museum gallery: brass plaque / a beach at noon: striped towel / a campsite in the woods: enamel cup /
    a wizard's study: unrolled scroll / a misty cemetery: mossy gravestone / a construction site: yellow safety helmet /
    a protest march: cardboard placard / a parking lot: metal license plate / a subway platform: bright information screen /
    a toy store: painted wooden crate / a park in winter: carved bench / a jewelry workshop: engraved silver ring /
    a fishing harbor: small blue boat / a newsstand: glossy magazine / a post office: airmail envelope /
    a freight yard: rusty steel container
"""
_SCENES = tuple(tuple(scene.strip().split(": ")) for scene in _SCENES.split("/"))
_MANNERS = ("", "clearly ", "prominently ", "boldly ")
_PHRASES = ("reads", "says", "displays the words", "bears the text", "shows the phrase", "spells out")
_ENDINGS = (
    *("under soft morning light", "in warm evening sun", "with a softly blurred background", "while people walk past"),
    *("in sharp detail", "after the rain", "against a clear blue sky", "with long shadows", "in muted, nostalgic colors"),
    *("surrounded by fresh flowers", "lit from one side", "in a calm, quiet mood"),
)
_VOCABULARY = """
    Open Closed Welcome Fresh Daily Special Happy Golden Silver Lucky Wild Silent Hidden Secret Lost Found Last First Final
    Great Little Grand Royal Old New North South East West Blue Red Green Summer Winter Spring Autumn Morning Midnight
    Sunset Sunrise Today Tonight Tomorrow Forever Always Never Only Free Half Double Extra Super Magic Dream Star Moon Sun
    Sky Ocean River Harbor Island Mountain Valley Forest Garden Road Bridge Station Market House Castle Kitchen Bakery
    Coffee Tea Bread Honey Apple Lemon Pepper Salt Music Dance Party Festival Concert Show Museum Library School Science
    Future Space Rocket Robot Dragon Tiger Eagle Wolf Bear Fox Owl Whale Pirate Captain King Queen Knight Wizard Ghost
    Treasure Map Danger Caution Warning Exit Entrance Parking Private Keep Quiet Please Wait Here Stop Slow Stay Calm Dream
    Big Think Twice Try Again Good Luck Well Done Thank You Time Travel Zone Club Team Game Over Level
"""
_WORDS = tuple(dict.fromkeys(_VOCABULARY.split()))
_LENGTHS = {1: 0.05, 2: 0.25, 3: 0.45, 4: 0.25}  # words of a target, about as in the published test file
_SEED = 43


def _is_carrier(word: str) -> bool:
    word = word.lower()
    return word not in _OTHERS and any(form in CARRIERS for form in (word, word.removesuffix("s"), word.removesuffix("es")))


def carrier(prompt: str, target: Span) -> Span | None:
    """The span of the noun that carries the quoted `target` (a span of core.quoted), or None when no known noun does.

    Known nouns are a list of ours, made while looking at the published test captions: it finds one in 981 of 1,018, and of 100
    that were looked at 96 were right. In this order: the word right after the closing quotation mark (`a "Keep Out" sign`),
    the nearest before the target in its sentence, the nearest of the five words after it, the nearest in the sentences before.
    """
    lettering = quotations(prompt)
    words = [m for m in _WORD.finditer(prompt) if not any(start <= m.start() < end for start, end in lettering)]
    sentence = max((m.end() for m in _SENTENCE.finditer(prompt, 0, target.start)), default=0)
    stop = _SENTENCE.search(prompt, target.end)
    after = [m for m in words if target.end < m.start() < (stop.start() if stop else len(prompt))][:5]
    before = [m for m in words if m.end() < target.start]
    attached = [m for m in after[:1] if prompt[target.end + 1 : m.start()].isspace()]
    same, earlier = ([m for m in reversed(before) if (m.start() >= sentence) is near] for near in (True, False))
    for m in (*attached, *same, *after, *earlier):
        if _is_carrier(m[0]):
            return Span(m[0], m.start(), m.end(), "object")
    return None


def record(i: int, prompt: str) -> Prompt:
    spans = core.quoted(prompt)
    noun = carrier(prompt, spans[0])
    carried = {"carrier": noun.text} if noun else {}
    metadata = {"tag": "ocr", "text": spans[0].text, **carried, "prompt": prompt}
    ordered = tuple(sorted((*spans, noun), key=lambda span: span.start)) if noun else spans
    return Prompt(f"ocr-{i:05d}", "ocr", "ocr", prompt, ordered, metadata)


def _target(rng: np.random.Generator) -> str:
    words = [_WORDS[i] for i in rng.choice(len(_WORDS), rng.choice(list(_LENGTHS), p=list(_LENGTHS.values())), replace=False)]
    if len(words) > 1 and rng.random() < 0.15:
        words[-1] = str(rng.integers(2, 100))
    return " ".join(words)


def _caption(target: str, rng: np.random.Generator) -> str:
    def one(options: tuple) -> str:
        return options[rng.integers(len(options))]

    place, noun = one(_SCENES)
    phrase = f"{one(_MANNERS)}{one(_PHRASES)}"
    return f'{one(_STYLES)} {place}, where {core.article(noun)} {phrase} "{target}", {one(_ENDINGS)}.'


def generated(split: str) -> list[str]:
    """Captions of a carrier scene with one quoted target, by a fixed seed; as many as are published, other targets each split.

    The targets of `test` and `validation` are all different; those of `train` may repeat, in other scenes.
    """
    taken: set[str] = set()
    for part, number in (("test", _TEST_PROMPTS), ("validation", published.VALIDATION_PROMPTS), ("train", _TRAIN_PROMPTS)):
        rng, captions, held_out = np.random.default_rng([_SEED, *part.encode()]), [], frozenset(taken)
        while len(captions) < number:
            target = _target(rng)
            if target.lower() in (held_out if part == "train" else taken):
                continue
            taken.add(target.lower())
            captions.append(_caption(target, rng))
        if part == split:
            return captions
    raise ValueError(f"no split {split!r}")


def records(split: str, prompts: Prompts) -> list[Prompt]:
    """The prompt records of a split: train, validation or test. Raises InputError when the published file cannot be had."""
    if prompts.ocr == "generated":
        captions = generated(split)
    else:
        lines = published.captions("ocr", split, prompts.mirror)
        captions = [line for line in lines if quotations(line)]
        if len(captions) < len(lines):
            print(f"ocr {split}: {len(lines) - len(captions)} of {len(lines)} captions left out, which quote no target")
    return [record(i, caption) for i, caption in enumerate(captions)]
