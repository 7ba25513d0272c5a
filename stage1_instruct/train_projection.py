"""Trains the projection f_vt: the language model, frozen, has to give the caption when it is shown the image.

In text form the instruction is discrete, so the mask loss of stage 2 sends the projection no gradient; it has this
objective of its own instead, as in LLaVA's and XrayGPT's first stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from cache.errors import UserError
from cache.terminal import progress
from cache.terminal import say as say_to_terminal
from stage1_instruct.models.connectors import Connector, save_connector
from stage1_instruct.models.llm import InstructionLLM
from stage1_instruct.models.load import trained_projection
from stage1_instruct.pairs import Pair, read_pairs, vision_features
from stage1_instruct.prompts import question

if TYPE_CHECKING:
    from cache.reader import Cache
    from stage1_instruct.models.load import Models

__all__ = ["Pair", "TrainingRecipe", "read_pairs", "train_projection"]


@dataclass(frozen=True)
class TrainingRecipe:
    """How the projection is trained.

    Attributes:
        epochs: passes over the training pairs; None: as many as make about 150 steps.
        lr: the highest learning rate of AdamW after a warm-up, then cosine to a tenth of it. Twice LLaVA's for this
            stage, because steps are few: 96 steps on 96 pairs took the loss on held-out patients from 2.74 to 0.59.
        warm_up: share of the steps.
        caption_tokens: captions are cut to this many, with the end marker.
        held_out: share of the images that is never trained on.
    """

    epochs: int | None = None
    lr: float = 2e-3
    batch_size: int = 4
    seed: int = 0
    warm_up: float = 0.05
    caption_tokens: int = 48
    held_out: float = 0.1
    gradient_clip: float = 1.0


def train_projection(
    pairs: Sequence[Pair],
    models: Models,
    cache: Cache | None = None,
    out: Path | None = None,
    epochs: int | None = TrainingRecipe.epochs,
    lr: float = TrainingRecipe.lr,
    batch_size: int = TrainingRecipe.batch_size,
    seed: int = TrainingRecipe.seed,
    say: Callable[[str], None] = say_to_terminal,
) -> Path:
    """Trains a projection for a profile's models and saves it; two runs with one seed on a CPU give equal weights.

    Args:
        pairs: what to learn from; rows of a cache need `cache`.
        out: where to save; with the models in ZEUS_HOME, where build-cache finds it, by default.
    Returns:
        where it was saved, with losses and a sample caption before and after as metadata.
    """
    recipe = TrainingRecipe(epochs=epochs, lr=lr, batch_size=batch_size, seed=seed)
    out = out or trained_projection(models.profile)
    features = vision_features(pairs, models, cache)
    llm, questions, captions = models.llm, [_question(pair, cache) for pair in pairs], [p.caption for p in pairs]
    training, held_out = split_by_image(pairs, recipe.held_out, seed)
    projection = models.new_projection(seed).to(models.device)
    projection.standardise_by(features[training].to(models.device))
    say(f"{len(training)} pairs to learn from, {len(held_out)} held out, {_steps(len(training), recipe)} steps")

    sample = (held_out or training)[0]
    before = caption(projection, llm, features[sample], questions[sample])
    held_out_before = mean_loss(projection, llm, features, questions, captions, held_out, recipe)
    training_loss = fit(projection, llm, features, questions, captions, training, recipe, say)
    held_out_after = mean_loss(projection, llm, features, questions, captions, held_out, recipe)
    after = caption(projection, llm, features[sample], questions[sample])
    if held_out_before is not None and held_out_after is not None:
        say(f"held-out loss {held_out_before:.3f} before, {held_out_after:.3f} after")
    say(f"one {'held-out' if held_out else 'training'} image, before: {before}")
    say(f"  after: {after}")
    say(f"  its caption: {captions[sample]}")
    facts = {
        "vision": models.vision_recipe(),
        "llm_sha256": llm.digest,
        "template": llm.template.name,
        "training": {**asdict(recipe), "pairs": len(training), "bf16": computes_bf16(models.device)},
        "loss": {"training": training_loss, "held_out_before": held_out_before, "held_out": held_out_after},
        "sample": {"before": before, "after": after, "caption": captions[sample]},
    }
    save_connector(projection, out, facts)
    say(f"projection saved: {out}")
    return out


def split_by_image(pairs: Sequence[Pair], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and to hold out; pairs of one image stay together, one image at least is trained on."""
    sources = sorted({pair.source for pair in pairs})
    order = torch.randperm(len(sources), generator=torch.Generator().manual_seed(seed)).tolist()
    count = min(round(share * len(sources)), len(sources) - 1)
    chosen = {sources[i] for i in order[:count]}
    held_out = [i for i, pair in enumerate(pairs) if pair.source in chosen]
    return [i for i, pair in enumerate(pairs) if pair.source not in chosen], held_out


def _question(pair: Pair, cache: Cache | None) -> str:
    if pair.image is not None or cache is None:
        return question(pair.instance, pair.modality)
    return question(pair.instance or cache.card.instance, cache.card.terms[pair.modality])


def _epochs(count: int, recipe: TrainingRecipe) -> int:
    return recipe.epochs or math.ceil(150 / math.ceil(count / recipe.batch_size))


def _steps(count: int, recipe: TrainingRecipe) -> int:
    return _epochs(count, recipe) * math.ceil(count / recipe.batch_size)


def fit(
    projection: Connector,
    llm: InstructionLLM,
    features: Tensor,
    questions: Sequence[str],
    captions: Sequence[str],
    training: Sequence[int],
    recipe: TrainingRecipe,
    say: Callable[[str], None] = say_to_terminal,
) -> float:
    """Trains `projection` in place; returns the last epoch's mean loss.

    Args:
        features: float32 (N, T, C) of every pair; questions and captions alike.
        training: indices of the pairs to learn from.
    """
    optimizer = torch.optim.AdamW(projection.parameters(), lr=recipe.lr, weight_decay=0.0)
    total = _steps(len(training), recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, total, recipe.warm_up))
    generator = torch.Generator().manual_seed(recipe.seed)
    projection.train()
    epoch_loss = math.nan
    epochs = _epochs(len(training), recipe)
    for epoch in range(epochs):
        order = [training[i] for i in torch.randperm(len(training), generator=generator).tolist()]
        batches = [order[i : i + recipe.batch_size] for i in range(0, len(order), recipe.batch_size)]
        losses = []
        for batch in progress(batches, f"epoch {epoch + 1} of {epochs}"):
            loss = caption_loss(projection, llm, features, questions, captions, batch, recipe.caption_tokens)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(projection.parameters(), recipe.gradient_clip)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        epoch_loss = sum(losses) / len(losses)
        if not math.isfinite(epoch_loss):
            raise UserError(f"the projection's loss became {epoch_loss} at lr {recipe.lr}; try a lower --lr")
        say(f"epoch {epoch + 1}: training loss {epoch_loss:.3f}")
    projection.eval()
    return epoch_loss


def _rate(step: int, total: int, warm_up: float) -> float:
    """Share of the highest learning rate: linear warm-up, then cosine to 0.1."""
    rising = max(1, round(warm_up * total))
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1, total - rising)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * done))


def caption_loss(
    projection: Connector,
    llm: InstructionLLM,
    features: Tensor,
    questions: Sequence[str],
    captions: Sequence[str],
    batch: Sequence[int],
    caption_tokens: int,
) -> Tensor:
    """Mean cross-entropy per caption token of the captions after the prompts with projected image tokens."""
    device = llm.embedding.weight.device
    end = llm.token_ids(llm.template.answer_end)
    targets = [llm.token_ids(f" {captions[i]}")[: caption_tokens - len(end)] + end for i in batch]
    image_tokens = projection(features[list(batch)].to(device))
    prompts = [llm.embed_prompt(questions[i], tokens) for i, tokens in zip(batch, image_tokens)]
    # Padding stands on the right, after all that counts: with causal attention it needs no mask.
    longest = max(len(prompt) + len(target) for prompt, target in zip(prompts, targets))
    rows: list[int] = []
    positions: list[int] = []
    wanted, embeds = [], []
    for row, (prompt, target) in enumerate(zip(prompts, targets)):
        ids = torch.tensor(target, device=device)
        sequence = torch.cat([prompt, llm.embedding(ids)])
        embeds.append(F.pad(sequence, (0, 0, 0, longest - len(sequence))))
        rows += [row] * len(target)
        positions += range(len(prompt) - 1, len(prompt) - 1 + len(target))
        wanted.append(ids)
    with torch.autocast(device.type, torch.bfloat16, enabled=computes_bf16(device)):
        states = llm.model.base_model(inputs_embeds=torch.stack(embeds), use_cache=False).last_hidden_state
        # Only where a caption token is predicted: the output layer over the whole vocabulary is a fifth of the model.
        logits = llm.model.get_output_embeddings()(states[rows, positions])
    return F.cross_entropy(logits.float(), torch.cat(wanted))


def computes_bf16(device: torch.device) -> bool:
    """Whether bf16 is fast there: a step takes 1.8 s instead of 3.0 on two cores, its gradient's cosine is 0.997."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@torch.no_grad()
def mean_loss(
    projection: Connector,
    llm: InstructionLLM,
    features: Tensor,
    questions: Sequence[str],
    captions: Sequence[str],
    chosen: Sequence[int],
    recipe: TrainingRecipe,
) -> float | None:
    """Mean caption loss over some pairs, weighted by batch; None for none."""
    batches = [chosen[i : i + recipe.batch_size] for i in range(0, len(chosen), recipe.batch_size)]
    if not batches:
        return None
    sizes = [len(batch) for batch in batches]
    losses = [
        caption_loss(projection, llm, features, questions, captions, batch, recipe.caption_tokens).item()
        for batch in batches
    ]
    return sum(loss * size for loss, size in zip(losses, sizes)) / sum(sizes)


@torch.no_grad()
def caption(projection: Connector, llm: InstructionLLM, features: Tensor, asked: str) -> str:
    """What the language model says of one image: features (T, C)."""
    tokens = projection(features[None].to(llm.embedding.weight.device))
    return llm.generate([asked], tokens)[0].text
