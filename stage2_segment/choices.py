"""What options can be, with what each means; the command line offers them, the code checks them."""

from __future__ import annotations

ZEUS = "zeus"
BASELINES = {
    "unet": "U-Net",
    "attention_unet": "AttUNet",
    "res_unet": "ResUNet",
    "unext": "UNeXt",
    "unet_plus_plus": "UNet++",
    "transunet": "TransUNet",
    "missformer": "MISSFormer",
    "pretrained_unet": "Pretrained U-Net",
}
WITH_PRETRAINED = ("transunet", "pretrained_unet")  # those that published weights exist for
NEEDS_PRETRAINED = ("pretrained_unet",)  # from nothing it is none
MODELS = (ZEUS, *BASELINES)
FUSIONS = {
    "early": "the modalities are the channels of one image (baselines only)",
    "hybrid": "Zeus: one decoder and one aligner read the modalities one by one, masks combined at the end; "
    "baselines: an encoder for each modality, their feature maps merged scale by scale, one decoder",
    "late": "a decoder and an aligner (a whole network) of its own for every modality, masks combined at the end",
}
MERGES = {
    "concat": "the feature maps side by side and a 1 x 1 convolution",
    "mean": "the mean of the feature maps",
}
PRESETS = {
    "published": "the widths of the published networks",
    "table2": "widths that give the parameter count of the paper's Table 2 with early fusion",
    "quarter": "a quarter of the published widths, about a sixteenth of the work: for a computer without a GPU",
}
# What `model.fusion.COMBINES` has.
COMBINES = {
    "mean": "the mean of the modalities' logits",
    "max": "the highest of them",
    "learned": "a weight for each class and modality",
}
CLASS_WEIGHTS = ("equal", "inverse")
PRECISIONS = ("fp32", "bf16")
INSTRUCTIONS = {
    "modality": "one instruction for all classes",
    "class": "one for each class, which the decoder answers with a binary mask",
}
FORMS = {
    "sentence": "one embedding of the whole text",
    "tokens": "the language model's last-layer state at every token of its answer",
}
RESIDUAL, MLP = "residual", "mlp"
ALIGNERS = {
    RESIDUAL: "a learned token plus what the text adds to it, nothing at the start: never worse than no text by its weights",
    MLP: "the paper's two layers: the text alone makes the token; with --form tokens, each state makes one",
}
# What the aligner reads. All but the first, none and the oracle are controls: what is left of a gain with them is not due
# to what the instruction says of its slice.
TEXTS = {
    "instruction": "the slice's own instruction",
    "shuffled-slices": "the instruction of another slice of the same subject, same modality",
    "shuffled-modalities": "the slice's instruction of another modality",
    "constant": "one instruction for all slices, the training slices' most typical, per modality",
    "random": "a random vector of its own for every slice and modality",
    "none": "no text, a learned token",
    "oracle": "a caption from the slice's true labels: a leak, the upper bound of what text can do",
}
RESIDENT = {
    "auto": "the fastest of the others that fits into half of the free memory",
    "device": "on the GPU as a whole",
    "ram": "in main memory as a whole",
    "disk": "read batch by batch",
}


def default_aligner(recipe: str | None) -> str:
    """The aligner of a run that names none; `recipe` None: the default one."""
    return MLP if recipe == "paper" else RESIDUAL
