"""Tokens a second of three ways to write instructions: `python tests/benchmarks/bench_llm.py [--prompts 24] [--batch 8]`.

SmolLM2-135M-Instruct, the template `zeus`, 48 new tokens at most, random image tokens. So that answers have varied
lengths, as those of a trained model have, every seventeenth token of the vocabulary ends one. In each round, in turn:
`naive`, one image at a time through transformers' generate, as XrayGPT's demo does; `batched`, generate on fixed
batches, each as long as its longest row; `ours`, slots that are refilled. The table gives medians over the rounds.

Expected: refill saves what fixed batches idle, longest / mean length = 48 / 28 = 1.7 of the decoding steps, less of the
whole because every prompt (60 tokens and more against 28 new ones) has to be read all the same. Measured on one thread of
a shared CPU, 2 rounds, answers of 16 to 48 tokens: naive 11.2 tokens/s, batched 23.2 (2.1 x), ours 34.8 (3.1 x; 1.5 x
batched), without the shared beginning 28.2. A GPU should gain more from batches, as its steps cost the same for 1 and 16
rows; not measured.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import transformers

from zeus_union.cache.terminal import say
from zeus_union.stage1_instruct.models.language.decoding import Decoder, Decoding, Prompts
from zeus_union.stage1_instruct.models.language.llm import InstructionLLM
from zeus_union.stage1_instruct.models.language.prompts import question, template

IMAGE_TOKENS = 16
INSTANCES = ("liver", "prostate", "brain tumour", "spleen", "left kidney", "right kidney", "liver and spleen", "heart")
TERMS = ("MRI-T2", "MRI-T1-DUAL in-phase", "CT")


def generate(llm: InstructionLLM, prompts: Sequence[torch.Tensor], ends: list[int], batch: int) -> list[list[int]]:
    """The answers by transformers' generate on fixed batches, padded on the left."""
    config = transformers.GenerationConfig(
        max_new_tokens=llm.decoding.max_new_tokens, do_sample=False, eos_token_id=ends, pad_token_id=0
    )
    answers: list[list[int]] = []
    for at in range(0, len(prompts), batch):
        rows = prompts[at : at + batch]
        longest = max(map(len, rows))
        mask = torch.stack([torch.arange(longest) >= longest - len(row) for row in rows]).long()
        embeds = torch.nn.utils.rnn.pad_sequence([row.flip(0) for row in rows], batch_first=True).flip(1)
        ids = llm.model.generate(
            inputs_embeds=embeds, attention_mask=mask.to(embeds.device), generation_config=config
        ).tolist()
        answers += [row[: next((i + 1 for i, token in enumerate(row) if token in ends), len(row))] for row in ids]
    return answers


def ours(
    llm: InstructionLLM, prompts: Sequence[torch.Tensor], ends: list[int], batch: int, shared: int
) -> list[list[int]]:
    """The answers by the decode loop."""
    endings = set(ends)
    decoder = Decoder(llm.model, llm.decoding, batch, lambda tokens: "eos" if tokens[-1] in endings else None, say)
    rows = Prompts([len(prompt) for prompt in prompts], lambda i: prompts[i], shared)
    return [answer.tokens for answer in decoder.run(rows, [0] * len(prompts))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    decoding = Decoding(max_new_tokens=arguments.new_tokens)
    llm = InstructionLLM(
        "smollm2-135m-instruct", template("zeus"), decoding, "cuda" if torch.cuda.is_available() else "cpu"
    )
    asked = itertools.cycle(question(instance, term) for instance in INSTANCES for term in TERMS)
    torch.manual_seed(0)
    scale = llm.embedding.weight.std().cpu()
    with torch.inference_mode():
        prompts = [
            llm.embed_prompt(one, torch.randn(IMAGE_TOKENS, llm.width) * scale)
            for one in itertools.islice(asked, arguments.prompts)
        ]
    ends = list(range(0, llm.embedding.num_embeddings, 17))
    shared = len(llm.token_ids(llm.template.pieces("")[0]))
    ways: dict[str, Callable[[], list[list[int]]]] = {
        "naive": lambda: generate(llm, prompts, ends, 1),
        "batched": lambda: generate(llm, prompts, ends, arguments.batch),
        "ours, all prompts anew": lambda: ours(llm, prompts, ends, arguments.batch, 0),
        "ours": lambda: ours(llm, prompts, ends, arguments.batch, shared),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    generate(llm, prompts[:1], ends, 1)  # first calls are slower
    for _ in range(arguments.rounds):
        texts = []
        for name, way in ways.items():
            start = time.perf_counter()
            texts.append(way())
            rates[name].append(sum(map(len, texts[-1])) / (time.perf_counter() - start))
        if any(text != texts[0] for text in texts):
            raise SystemExit("the ways disagree on the answers")
    lengths = sorted(map(len, texts[0]))
    print(
        f"{len(prompts)} prompts, answers of {lengths[0]} to {lengths[-1]} tokens, {statistics.mean(lengths):.0f} on average"
    )
    naive = statistics.median(rates["naive"])
    for name, found in rates.items():
        rate = statistics.median(found)
        print(f"{name:24}{rate:8.1f} tokens/s{rate / naive:8.2f} x naive")


if __name__ == "__main__":
    main()
