"""What a DICOM frame's tags say of the image: `traits_of_tags`, with the reason in plain words."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from zeus_union.cache.errors import UserError
from zeus_union.pipelines.intake.traits import Traits
from zeus_union.stage1_instruct.studies.chaos import IN_PHASE, OUT_PHASE, phase_word
from zeus_union.stage1_instruct.studies.dicom_frames import Frame, tag_number, tag_numbers, tag_value

# Private tags of b-values: Siemens, Philips, GE (the first of four numbers, with 1e9 added), United Imaging.
PRIVATE_B_VALUES = ((0x0019, 0x100C), (0x2001, 0x1003), (0x0043, 0x1039), (0x0065, 0x1009))
GE_OFFSET = 1e6
# In ms. Spin echoes: a long echo time is T2; a short one is T1 after a short repetition time, else proton density.
LONG_ECHO, SHORT_ECHO, SHORT_REPETITION = 60.0, 40.0, 1200.0
# Gradient echoes with a longer echo time than this lose signal to T2*.
GRADIENT_ECHO = 12.0
# Inversion times: fat is nulled below the first, fluid above the second.
FAT_NULLED, FLUID_NULLED = 300.0, 1500.0
# Words of the SOP class's name -> Modality, for files that lost it.
_DEVICES = {"MR Image": "MR", "CT Image": "CT", "Positron Emission": "PT", "PET Image": "PT"}
# Words of ImageType -> the weighting that they mean.
_MAPS = {
    "ADC": "ADC",
    "ADC_UNSPECIFIED": "ADC",
    "TRACEW": "DWI",
    "TRACE": "DWI",
    "DIFFUSION": "DWI",
    "FA": "diffusion map",
    "EADC": "diffusion map",
    "EXP_ADC": "diffusion map",
    "TENSOR": "diffusion map",
    "SWI": "SWI",
    "ASL": "perfusion",
    "PERFUSION": "perfusion",
    "ANGIO": "angiography",
    "TOF": "angiography",
    "FMRI": "fMRI",
}
_CONTRASTS = {"T1": "T1", "T2": "T2", "FLUID_ATTENUATED": "FLAIR", "PROTON_DENSITY": "PD", "DIFFUSION": "DWI"}
_CONTRASTS |= {"T2_STAR": "T2*", "PERFUSION": "perfusion", "TOF": "angiography", "STIR": "STIR"}
_PHASES = {IN_PHASE: "in phase", OUT_PHASE: "out of phase"}
_FAT_OPTIONS = re.compile(r"(FS|SPIR|SPAIR|FAT[ _]?SAT|FSS|SFS|FSAT|FATSAT_GEMS|CHEMSAT_GEMS)", re.IGNORECASE)
_NO_AGENT = frozenset(("", "no", "none", "n", "0", "without", "non", "nein", "no contrast", "no contrast agent"))


def traits_of_tags(frame: Frame) -> Traits:
    """What the tags of a frame say; a tag that is missing or damaged says nothing."""
    device = text_of(frame, "Modality").upper()
    reasons = {"device": f"Modality {device}"}
    if not device:
        storage = str(getattr(_value(frame, "SOPClassUID"), "name", ""))
        device = next((known for words, known in _DEVICES.items() if words in storage), "")
        reasons = {"device": storage}
    if device != "MR":
        return Traits(device=device, contrast=_contrast(frame, reasons), reasons=reasons)
    b_value = _b_value(frame)
    weighting = _weighting(frame, b_value, reasons)
    if weighting != "DWI":
        b_value = None  # an ADC map keeps the b-value of one of the images it was made of
    elif b_value is not None:
        reasons["b_value"] = f"b {b_value:g} s/mm2"
    return Traits(
        device=device,
        weighting=weighting,
        contrast=_contrast(frame, reasons),
        fat_suppressed=_fat_suppressed(frame, weighting, reasons),
        phase=_phase(frame, reasons),
        b_value=b_value,
        reasons=reasons,
    )


def image_words(frame: Frame) -> tuple[str, ...]:
    """ImageType, in capitals."""
    value = _value(frame, "ImageType")
    values = [value] if isinstance(value, str) else list(value or ())
    return tuple(str(word).strip().upper() for word in values)


def component(frame: Frame) -> str:
    """Which part of a complex image it is: '' for the magnitude, else 'phase', 'real' or 'imaginary'."""
    words = {*image_words(frame)[2:], text_of(frame, "ComplexImageComponent").upper()}
    for name, meant in (
        ("phase", {"P", "PHASE", "PHASE MAP"}),
        ("real", {"R", "REAL"}),
        ("imaginary", {"I", "IMAGINARY"}),
    ):
        if words & meant:
            return name
    return ""


def description(frame: Frame) -> str:
    """SeriesDescription, else ProtocolName."""
    return text_of(frame, "SeriesDescription") or text_of(frame, "ProtocolName")


def _weighting(frame: Frame, b_value: float | None, reasons: dict[str, str]) -> str:
    for word in (part for whole in image_words(frame)[2:] for part in (whole, *re.split(r"[ _]", whole))):
        if word in _MAPS and not (word == "DIFFUSION" and {"ADC", "FA"} & {*image_words(frame)}):
            reasons["weighting"] = f"ImageType {word}"
            return _MAPS[word]
    contrast = str(_value(frame, "AcquisitionContrast") or "").upper()
    if contrast in _CONTRASTS:
        reasons["weighting"] = f"AcquisitionContrast {contrast}"
        return _CONTRASTS[contrast]
    if text_of(frame, "AngioFlag").upper() == "Y":
        reasons["weighting"] = "AngioFlag Y"
        return "angiography"
    sequence = {str(part).upper() for part in _several(_value(frame, "ScanningSequence"))}
    variant = {str(part).upper() for part in _several(_value(frame, "SequenceVariant"))}
    if b_value is not None and ("EP" in sequence or b_value):
        reasons["weighting"] = f"b {b_value:g} s/mm2"
        return "DWI"
    echo, repetition = _number(frame, "EchoTime"), _number(frame, "RepetitionTime")
    inversion = _number(frame, "InversionTime")
    if not echo:
        return ""
    times = (
        f"TE {echo:g}" + (f", TR {repetition:g}" if repetition else "") + (f", TI {inversion:g}" if inversion else "")
    )
    # Steady state without spoiling (TrueFISP, FIESTA) is T2 over T1, which its times do not show.
    balanced = "GR" in sequence and "SS" in variant and "SP" not in variant
    weighting = "" if balanced else _by_times(sequence, echo, repetition, inversion)
    if weighting:
        reasons["weighting"] = f"{times} ms"
    return weighting


def _by_times(sequence: set[str], echo: float, repetition: float, inversion: float) -> str:
    """T1, T2, PD, FLAIR, STIR or T2*, by the sequence and its times in ms; '' where they do not say it."""
    if inversion:
        if inversion > FLUID_NULLED and echo > LONG_ECHO:
            return "FLAIR"
        if inversion < FAT_NULLED and "GR" not in sequence:
            return "STIR"
        if echo < SHORT_ECHO:
            return "T1"
    if "EP" in sequence:
        return ""
    if "GR" in sequence:
        return "T1" if echo <= GRADIENT_ECHO else "T2*"
    if not sequence and repetition and repetition < SHORT_REPETITION and echo <= GRADIENT_ECHO:
        return "T1"
    if echo >= LONG_ECHO:
        return "T2"
    if "SE" in sequence and repetition and echo < SHORT_ECHO:
        return "T1" if repetition < SHORT_REPETITION else "PD"
    return ""


def _contrast(frame: Frame, reasons: dict[str, str]) -> bool | None:
    agent = text_of(frame, "ContrastBolusAgent")
    if not agent and (items := _several(_value(frame, "ContrastBolusAgentSequence"))):
        agent = str(getattr(items[0], "CodeMeaning", "") or "contrast agent")
    if agent.casefold() not in _NO_AGENT:
        reasons["contrast"] = f"contrast agent {agent}"
        return True
    return None


def _fat_suppressed(frame: Frame, weighting: str, reasons: dict[str, str]) -> bool | None:
    suppressed = str(_value(frame, "SpectrallySelectedSuppression") or "").upper()
    option = next(
        (str(word) for word in _several(_value(frame, "ScanOptions")) if _FAT_OPTIONS.fullmatch(str(word).strip())), ""
    )
    if option or "FAT" in suppressed:
        reasons["fat_suppressed"] = f"ScanOptions {option}" if option else "fat suppressed"
    elif weighting == "STIR":
        reasons["fat_suppressed"] = reasons["weighting"]
    return True if "fat_suppressed" in reasons else None


def _phase(frame: Frame, reasons: dict[str, str]) -> str:
    words = {*image_words(frame)[2:]}
    for word in ("WATER", "FAT"):
        if words & {word, f"{word}_IMAGE", word[0]}:
            reasons["phase"] = f"ImageType {word}"
            return word.lower()
    try:
        phase = _PHASES.get(phase_word(frame), "")
    except UserError:
        phase = ""
    if phase:
        reasons["phase"] = f"{phase} (ImageType)"
    return phase


def _b_value(frame: Frame) -> float | None:
    standard = _value(frame, "DiffusionBValue")
    for value in (standard, *(_private(frame, tag) for tag in PRIVATE_B_VALUES)):
        try:
            number = float(np.atleast_1d(np.asarray(_decoded(value), dtype=np.float64)).ravel()[0])
        except (TypeError, ValueError, IndexError):
            continue
        if number >= GE_OFFSET:
            number %= GE_OFFSET
        if 0 <= number <= 20_000:
            return number
    return None


def _private(frame: Frame, tag: tuple[int, int]) -> Any:
    try:
        element = frame.header.get(tag)
        return None if element is None else element.value
    except Exception:  # pydicom converts a value when it is asked for, and fails as it may
        return None


def _decoded(value: Any) -> Any:
    """A private tag's value, which comes as bytes where pydicom does not know it: text of numbers, or a little-endian one."""
    if not isinstance(value, bytes):
        return value.split("\\") if isinstance(value, str) else value
    text = value.strip(b" \0")
    if re.fullmatch(rb"[\d.eE+\\ -]+", text):
        return text.decode().split("\\")
    kinds = {4: "<f4", 8: "<f8"}
    return np.frombuffer(value, kinds[len(value)]) if len(value) in kinds else None


def _several(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str) or not hasattr(value, "__iter__") else list(value)


def _value(frame: Frame, tag: str) -> Any:
    try:
        return tag_value(frame, tag)
    except UserError:
        return None


def text_of(frame: Frame, tag: str) -> str:
    """A tag as text, without needless spaces; '' where there is none or it is damaged."""
    value = _value(frame, tag)
    return "" if value is None else " ".join(str(value).split())


def numbers_of(frame: Frame, tag: str, count: int) -> tuple[float, ...]:
    """A tag's numbers; () where there are not so many."""
    try:
        return tuple(float(value) for value in tag_numbers(frame, tag, count))
    except UserError:
        return ()


def _number(frame: Frame, tag: str) -> float:
    """A tag's (first) number; 0 where there is none."""
    try:
        return tag_number(frame, tag, 0.0)
    except UserError:
        values = _several(_value(frame, tag))
        try:
            return float(values[0])
        except (IndexError, TypeError, ValueError):
            return 0.0
