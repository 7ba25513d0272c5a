"""What the check against loops costs of a decoding step: `python tests/benchmarks/bench_repeats.py [--rows 64]`.

A model of SmolLM2-135M's sizes at random weights, in bf16 on a GPU and fp32 on a CPU; answers of 40 tokens with and
without no_repeat_ngram_size and repetition_penalty. `check` is the time inside the check alone, as a share of a step.

Measured on one thread of a shared CPU, 64 rows of 77 tokens, vocabulary 49,152: 0.15 ms with n-grams of 12 and 2.1 ms
with the penalty too, where one row after another took 1.8 ms and 17 ms. A step takes seconds there.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
import transformers

from zeus_union.cache.terminal import say
from zeus_union.stage1_instruct.models.language.decoding import Decoder, Decoding, Prompts

SIZES = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
CHECKS: dict[str, dict[str, Any]] = {
    "no check": {},
    "n-grams of 12": {"no_repeat_ngram_size": 12},
    "n-grams of 3": {"no_repeat_ngram_size": 3},
    "n-grams of 3 and penalty": {"no_repeat_ngram_size": 3, "repetition_penalty": 1.2},
}


class Timed(Decoder):
    """Keeps the seconds of every check and of every step."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.checks: list[float] = []
        self.steps: list[float] = []

    def _against_loops(self, *arguments: Any) -> Any:
        start = _now()
        scores = super()._against_loops(*arguments)
        self.checks.append(_now() - start)
        return scores

    def _step(self, *arguments: Any) -> None:
        start = _now()
        super()._step(*arguments)
        self.steps.append(_now() - start)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=40)
    arguments = parser.parse_args()
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).to(device, dtype).eval()
    prompts = torch.randn(arguments.rows, 32, SIZES["hidden_size"], device=device, dtype=dtype)
    for name, settings in CHECKS.items():
        decoding = Decoding(max_new_tokens=arguments.new_tokens, **settings)
        decoder = Timed(model, decoding, arguments.rows, lambda tokens: None, say)
        decoder.run(Prompts([32] * arguments.rows, lambda i: prompts[i]), [0] * arguments.rows)
        check, step = (1000 * statistics.median(seconds) for seconds in (decoder.checks[1:], decoder.steps))
        print(f"{name:26}{step:10.2f} ms a step{check:10.3f} ms the check{100 * check / step:8.2f} %")


if __name__ == "__main__":
    main()
