"""What options can be, with what each means; the command line offers them, the code checks them."""

from __future__ import annotations

MODELS = ("zeus",)
FUSIONS = {
    "late": "a decoder and an aligner of its own for every modality, masks combined at the end",
    "hybrid": "one decoder and one aligner read the modalities one by one, masks combined at the end",
}
COMBINES = ("mean", "max", "learned")
INSTRUCTIONS = {
    "modality": "one instruction for all classes",
    "class": "one for each class, which the decoder answers with a binary mask",
}
FORMS = {
    "sentence": "one embedding of the whole text, one prompt token",
    "tokens": "the language model's last-layer state at every token of its answer, each a prompt token",
}
# What the aligner reads. All but the first and the last are controls: what is left of a gain with them is not due to
# what the instruction says of its slice.
TEXTS = {
    "instruction": "the slice's own instruction",
    "shuffled-slices": "the instruction of another slice of the same subject, same modality",
    "shuffled-modalities": "the slice's instruction of another modality",
    "constant": "one instruction for all slices, the training slices' most typical, per modality",
    "random": "a random vector of its own for every slice and modality",
    "none": "no text, a learned token",
}
RESIDENT = {
    "auto": "the fastest of the others that fits into half of the free memory",
    "device": "on the GPU as a whole",
    "ram": "in main memory as a whole",
    "disk": "read batch by batch",
}
