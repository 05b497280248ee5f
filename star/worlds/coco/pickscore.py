"""Preference prompts: Flow-GRPO's published Pick-a-Pic captions (arXiv 2305.01569, 2505.05470), filtered.

The captions are what people typed, unfiltered. The filter (ours) is a list of words, on by default; it is a floor, not a
guarantee: it drops some harmless captions and cannot know every harmful one.
"""

import re
import unicodedata

from star.config import Prompts
from star.prompts import core
from star.prompts.record import Prompt
from star.worlds.coco import published

# `*` is any ending, `-` a hyphen, a space or nothing. Left out on purpose: escort (a Ford), lynch (a director), guts (a hero).
_SEXUAL = """
    nude* nudist* nudity naked nsfw topless bottomless undress* unclothed sex sexy sexual* sexier sexiest porn* hentai
    erotic* ecchi xxx fetish* bdsm bondage dominatrix orgasm* orgy masturbat* blowjob* handjob* cum cumming cumshot*
    creampie* ejaculat* semen penis* phallus phallic vagina* vulva* clitoris pussy dildo* vibrator* genital* nipple* areola*
    boob* breast breasts tits titties titty busty bosom cleavage huge-naturals big-naturals butt butts buttocks ass asses
    lingerie underwear panties thong g-string bra braless upskirt stripper* striptease stripping hooker* prostitut* playboy
    penthouse-magazine onlyfans camgirl* milf* horny aroused seductive* seducing lustful kinky slut* whore* bimbo*
    voluptuous crotch see-through incest rape raped rapes rapist* molest* bestiality zoophil* necrophil* gangbang threesome
    futanari yiff*
"""
_MINORS = """
    loli lolis lolita* lolicon shota shotacon underage* pre-teen* jailbait pedophil* paedophil* pedo pedos
"""
_GORE = """
    gore gory dismember* decapitat* behead* disembowel* mutilat* eviscerat* dissected entrails suicid* self-harm* lynched
    lynching hanging-by-the-neck torture* torturing bloodbath massacre* snuff cannibal*
"""
_HATE = """
    nazi* hitler* swastika* kkk ku-klux* white-power nigger* nigga* faggot* kike kikes chink chinks tranny trannies
    holocaust genocid*
"""
# Harmless apart, not together: somebody young, and how the caption dresses or poses them.
_YOUNG = """
    child children kid kids toddler* baby babies schoolgirl* schoolboy* teen teens teenage* girl girls boy boys kindergarten
"""
_DRESSED = """
    bikini* swimsuit* swimwear mini-skirt* micro-skirt* crop-top* skin-tight tight tiny-shorts skimpy leotard* stockings
    pantyhose shirtless bare bathtub bathing in-bed in-his-bed in-her-bed flirt* curvy latex
"""


def _any(words: str) -> re.Pattern:
    """Whole words of a list in any case; a hyphen of the list also matches a space or nothing."""
    forms = (re.escape(word).replace(r"\-", "[ -]?").replace(r"\*", r"\w*") for word in words.split())
    return re.compile(rf"(?<!\w)(?:{'|'.join(forms)})(?!\w)")


_UNSAFE, _PERSON, _DRESS = (_any(words) for words in (_SEXUAL + _MINORS + _GORE + _HATE, _YOUNG, _DRESSED))


def unsafe(prompt: str) -> bool:
    """Whether a caption is sexual, gory or hateful, or sexualises somebody young, by its words."""
    text = unicodedata.normalize("NFKC", prompt).casefold().replace("_", " ")
    return bool(_UNSAFE.search(text) or (_PERSON.search(text) and _DRESS.search(text)))


def records(split: str, prompts: Prompts) -> list[Prompt]:
    """The prompt records of a split: train, validation or test. Raises InputError when the published file cannot be had.

    Prints how many captions the filter dropped; core content is the content words of the caption.
    """
    captions = published.captions("pickscore", split, prompts.mirror)
    if prompts.filter_unsafe:
        kept = [caption for caption in captions if not unsafe(caption)]
        print(f"pickscore {split}: {len(captions) - len(kept)} of {len(captions)} captions dropped by prompts.filter_unsafe")
        captions = kept
    return [
        Prompt(
            f"pickscore-{i:05d}", "pickscore", "free", caption, core.content_words(caption), {"tag": "free", "prompt": caption}
        )
        for i, caption in enumerate(captions)
    ]
