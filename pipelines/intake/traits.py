"""What kind of image a series is, or a modality's name asks for: device, weighting, contrast agent, fat, phase, b-value.

Both are described in the same few words, so that one can be held against the other. A description (SeriesDescription, a
modality's name, the term an instruction uses) is read word by word; tags are read in `tags`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

# Weighting -> what a word of it looks like, the more particular first: t2_tirm_dark-fluid is FLAIR, not T2.
WEIGHTINGS: Mapping[str, str] = {
    "diffusion map": r"colfa|eadc|exponential|tensor",
    "ADC": r"adc|dadc|apparent",
    "DWI": r"dwi|dw|diff|diffusion|trace|tracew|hbv|bval|b\d{2,4}(t|s)?|bvalue",
    "perfusion": r"dce|dsc|perf|perfusion|twist|tricks|asl|pasl|pcasl|cbf|cbv|mtt|ttp|tmax",
    "SWI": r"swi|swan|swip|phasemap|qsm",
    "angiography": r"tof|mra|angio|mrv|inhance",
    "fMRI": r"bold|fmri",
    "magnetisation transfer": r"mt\d?|mtr|mton|mtoff",
    "T2*": r"t2star|medic|hemo",
    "FLAIR": r"flair|t2flair|t2f|darkfluid",
    "STIR": r"stir|tirm",
    "T2": r"s?t2(w|wi|n)?|haste",
    "PD": r"s?pd(w|wi)?|proton",
    "T1": r"s?t1(w|wi|n|c|ce|gd|dual)?|mprage|mp2rage|spgr|fspgr|bravo|vibe|lava|thrive|flash|mdixon|tfl",
}
DEVICES: Mapping[str, str] = {
    "MR": r"mri|mr|cmr|magnetic",
    "CT": r"ct|cta|ctp|cect|ncct|hrct|ldct|hu",
    "PT": r"pet|pt|fdg|psma|suv",
}
_CONTRAST = r"gd|gad|gado|km|post|postcontrast|postgd|postkm|contrast|enhanced|ce|t1c|t1ce|t1gd|cect|gadolinium"
_NATIVE = r"pre|precontrast|native|nativ|noncontrast|unenhanced|ncct"
_FAT = r"fs|fatsat|spir|spair|stir|tirm|chemsat|specfatsat"
_PHASES: Mapping[str, str] = {
    "in phase": r"inphase|ip",
    "out of phase": r"outphase|op|opp|opposed|out|opphase",
    "water": r"water|w",
    "fat": r"fat|f",
}
# 'in', 'w' and 'f' are words of many other meanings: they are a phase beside one of these.
_SEVERAL_PHASES = frozenset(("dual", "dixon", "mdixon", "qdixon", "ideal", "flex", "t1dual"))
_JOINED: Mapping[str, str] = {
    r"dark[\s_-]*fluid": "darkfluid",
    r"(out|opp|opposed)[\s_-]*(of)?[\s_-]*phase": "outphase",
    r"in[\s_-]*phase": "inphase",
    r"fat[\s_-]*(sat\w*|supp?\w*)": "fatsat",
    r"t2[\s_-]*(star\b|\*)": "t2star",
    r"(without|no|non|w/o|ohne)[\s_-]*(contrast|gad\w*|gd|km|enhance\w*)": "noncontrast",
    r"contrast[\s_-]*enhanced": "postcontrast",
    r"[\s_-](col)?fa$": " tensor",
    r"high[\s_-]*b([\s_-]*val(ue)?)?\b": "hbv",
    r"\+\s*(c|gd|gad|km)\b|(?<=[\s_-])c\+": " postcontrast ",
    r"b[\s_-]*(value|val)?[\s_=]*(\d{2,4})\b": r"b\2",
}
PLANES: Mapping[str, str] = {
    "axial": r"ax|axi|axial|tra|trans|transversal|transverse",
    "sagittal": r"sag|sagittal",
    "coronal": r"cor|coronal",
}
# Words of a name that say nothing beyond what the others do.
_PLAIN = frozenset(("dual", "image", "scan", "weighted", "phase", "mri", "mr", "sequence", "series"))


@dataclass(frozen=True)
class Traits:
    """What an image is; '' and None: not said.

    Attributes:
        device: DICOM's Modality: MR, CT, PT.
        weighting: a key of `WEIGHTINGS`.
        contrast: with contrast agent.
        fat_suppressed: whether fat is dark by a preparation.
        phase: 'in phase', 'out of phase', 'water', 'fat'.
        b_value: s/mm2.
        plane: of acquisition, a view's name.
        high_b: the highest b-value of the study is meant, whatever it is.
        reasons: attribute -> where it was read, in plain words.
    """

    device: str = ""
    weighting: str = ""
    contrast: bool | None = None
    fat_suppressed: bool | None = None
    phase: str = ""
    b_value: float | None = None
    plane: str = ""
    high_b: bool = False
    reasons: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def says_something(self) -> bool:
        """Whether anything is said of the image."""
        return bool(self.device or self.weighting)

    def completed_by(self, other: Traits) -> Traits:
        """What this leaves open taken from `other`."""
        missing = {
            name: getattr(other, name)
            for name in ("device", "weighting", "contrast", "fat_suppressed", "phase", "b_value", "plane")
            if getattr(self, name) in ("", None) and getattr(other, name) not in ("", None)
        }
        reasons = {**self.reasons, **{name: other.reasons[name] for name in missing if name in other.reasons}}
        return replace(self, **missing, high_b=self.high_b or other.high_b, reasons=reasons)


def words_of(text: str) -> tuple[str, ...]:
    """The words of a description, those that belong together joined: 'T2 dark-fluid' -> ('t2', 'darkfluid')."""
    text = text.casefold()
    for pattern, joined in _JOINED.items():
        text = re.sub(pattern, joined, text)
    return tuple(re.findall(r"[^\W_]+", text))


def _b_values(words: Sequence[str]) -> set[float]:
    """'b50', '800' -> 50 and 800: the second of several goes without its letter."""
    values: set[float] = set()
    for before, word in zip(("", *words), words):
        match = re.fullmatch(r"b(\d{2,4})[ts]?", word)
        if match or (re.fullmatch(r"\d{2,4}", word) and re.fullmatch(r"b?\d{2,4}", before) and values):
            values.add(float(match[1] if match else word))
    return values


def read_words(text: str) -> tuple[Traits, tuple[str, ...]]:
    """What a description says, and the words that say something unknown."""
    words = words_of(text)
    known: set[str] = set()

    def first(patterns: Mapping[str, str], among: Iterable[str]) -> str:
        """The first entry that a word matches; all words that match any are known."""
        matched = [(name, word) for name, pattern in patterns.items() for word in among if re.fullmatch(pattern, word)]
        known.update(word for _, word in matched)
        return matched[0][0] if matched else ""

    def any_of(pattern: str) -> bool:
        return bool(first({"yes": pattern}, words))

    weighting = first(WEIGHTINGS, words)
    if weighting == "FLAIR" and any(re.fullmatch(WEIGHTINGS["T1"], word) for word in words):
        weighting = "T1"  # T1-FLAIR: fluid is dark as in every T1
    contrast = False if any_of(_NATIVE) else True if any_of(_CONTRAST) else None
    fat = True if any_of(_FAT) else None
    phased = _SEVERAL_PHASES & {*words}
    among = words if phased else [word for word in words if word in ("inphase", "outphase")]
    phase = first(_PHASES, among) or ("in phase" if phased and "in" in words else "")
    known.update(("in",) if phase == "in phase" else ())
    values = _b_values(words)
    device = first(DEVICES, words)
    traits = Traits(
        device=device or ("MR" if weighting else ""),
        weighting=weighting,
        contrast=contrast,
        fat_suppressed=fat,
        phase=phase,
        b_value=values.pop() if len(values) == 1 else None,
        plane=first(PLANES, words),
        high_b="hbv" in words,
    )
    return traits, tuple(word for word in words if word not in known | _PLAIN)
