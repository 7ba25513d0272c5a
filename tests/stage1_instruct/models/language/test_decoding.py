"""The decode loop against transformers' generate: slots, refill, the shared beginning, sampling and states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.models.language import slot_cache
from zeus_union.stage1_instruct.models.language.decoding import Answer, Decoder, Decoding, Prompts, Row, _sample

VOCABULARY, WIDTH = 97, 32
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENDS = tuple(range(0, VOCABULARY, 30))
LENGTHS = (9, 21, 14, 9, 30, 12, 17, 25, 11)


def tiny(name: str = "Llama", **sizes: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **sizes})
    return getattr(transformers, f"{name}ForCausalLM")(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny()


def prompts(lengths: Sequence[int] = LENGTHS, shared: int = 5) -> list[Tensor]:
    """Random embeddings; the first `shared` of them are the same in all."""
    generator = torch.Generator().manual_seed(1)
    beginning = torch.randn(shared, WIDTH, generator=generator)
    return [
        torch.cat([beginning, torch.randn(length - shared, WIDTH, generator=generator)]) * 0.3 for length in lengths
    ]


def stop(tokens: Sequence[int]) -> str | None:
    return "eos" if tokens[-1] in ENDS else None


def decode(
    model: Any,
    rows: Sequence[Tensor],
    slots: int = 4,
    shared: int = 5,
    seeds: Sequence[int] | None = None,
    **decoding: Any,
) -> list[Answer]:
    wanted = Decoding(**{"max_new_tokens": 20, **decoding})
    waiting = Prompts([len(row) for row in rows], lambda i: rows[i], shared)
    return Decoder(model, wanted, slots, stop, print).run(waiting, seeds or [0] * len(rows))


def tokens(answers: Sequence[Answer]) -> list[list[int]]:
    return [answer.tokens for answer in answers]


def oracle(model: Any, row: Tensor, max_new_tokens: int = 20, **settings: Any) -> list[int]:
    """transformers' generate, one prompt."""
    config = transformers.GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=list(ENDS), pad_token_id=0, **settings
    )
    ones = torch.ones(1, len(row), dtype=torch.long)
    return model.generate(inputs_embeds=row[None], attention_mask=ones, generation_config=config)[0].tolist()


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Phi3"])
def test_tokens_are_those_of_transformers_generate(name: str) -> None:
    sizes = {"Mistral": {"sliding_window": 16}, "Phi3": {"pad_token_id": 0}}.get(name, {})
    model, rows = tiny(name, **sizes), prompts()
    expected = [oracle(model, row) for row in rows]
    assert tokens(decode(model, rows)) == expected
    assert len({tuple(row) for row in expected}) > 2


def test_penalties_are_those_of_transformers_generate(llama: Any) -> None:
    settings: dict[str, Any] = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2}
    rows = prompts()
    expected = [oracle(llama, row, 40, **settings) for row in rows]
    assert tokens(decode(llama, rows, max_new_tokens=40, **settings)) == expected
    assert expected != [oracle(llama, row, 40) for row in rows]


@pytest.mark.parametrize("n", [1, 3])
def test_ngrams_of_any_size_are_those_of_transformers_generate(llama: Any, n: int) -> None:
    rows = prompts(LENGTHS[:3])
    expected = [oracle(llama, row, 30, no_repeat_ngram_size=n) for row in rows]
    assert tokens(decode(llama, rows, max_new_tokens=30, no_repeat_ngram_size=n)) == expected


@pytest.mark.parametrize("slots", [1, 2, 3, 16])
def test_nine_prompts_through_any_number_of_slots_are_as_alone_in_either_order(llama: Any, slots: int) -> None:
    rows = prompts()
    alone = [decode(llama, [row])[0] for row in rows]
    assert decode(llama, rows, slots) == alone
    assert decode(llama, rows[::-1], slots)[::-1] == alone
    assert {answer.stop_reason for answer in alone} == {"eos", "length"}


def test_moving_the_cache_to_the_left_changes_no_token(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = prompts(LENGTHS * 3)
    expected = decode(llama, rows, slots=2)
    assert sum(len(answer.tokens) for answer in expected) / 2 > max(LENGTHS) + 20 + 64  # it was moved
    monkeypatch.setattr(slot_cache, "SPARE_COLUMNS", 1)
    assert decode(llama, rows, slots=2) == expected


@pytest.mark.parametrize("shared", [0, 1, 4])
def test_computing_the_shared_beginning_once_changes_no_token(llama: Any, shared: int) -> None:
    rows = prompts()
    assert decode(llama, rows, shared=shared) == decode(llama, rows, shared=5)


def test_one_new_token_and_one_prompt_are_no_special_case(llama: Any) -> None:
    rows = prompts()
    assert tokens(decode(llama, rows, max_new_tokens=1)) == [oracle(llama, row, 1) for row in rows]
    assert tokens(decode(llama, rows[:1])) == [oracle(llama, rows[0])]


def test_a_slot_is_refilled_as_soon_as_its_row_ends(llama: Any) -> None:
    rows = prompts()
    calls: list[int] = []
    handle = llama.register_forward_pre_hook(
        lambda _, arguments, given: calls.append(len(given["input_ids"]) if "input_ids" in given else 0),
        with_kwargs=True,
    )
    answers = decode(llama, rows, slots=2)
    handle.remove()
    steps = [rows_together for rows_together in calls if rows_together]
    assert sum(steps) == sum(len(answer.tokens) - 1 for answer in answers)
    assert set(steps[: steps.index(1)]) == {2} and set(steps[steps.index(1) :]) == {1}


def test_same_seed_same_answer_whatever_shares_the_batch(llama: Any) -> None:
    rows, seeds = prompts(), list(range(100, 109))
    settings: dict[str, Any] = {"temperature": 0.9, "top_p": 0.9}
    together = decode(llama, rows, 4, seeds=seeds, **settings)
    assert decode(llama, rows[::-1], 2, seeds=seeds[::-1], **settings)[::-1] == together
    assert [decode(llama, [row], seeds=[seed], **settings)[0] for row, seed in zip(rows, seeds)] == together
    assert tokens(together) != tokens(decode(llama, rows))


def test_another_seed_gives_another_answer(llama: Any) -> None:
    row = prompts()[1]
    drawn = decode(llama, [row] * 4, seeds=[1, 2, 3, 4], temperature=1.0)
    assert len({tuple(answer.tokens) for answer in drawn}) > 1


def test_a_low_temperature_or_top_p_is_greedy(llama: Any) -> None:
    rows = prompts()
    greedy = tokens(decode(llama, rows))
    assert tokens(decode(llama, rows, temperature=1e-4)) == greedy
    assert tokens(decode(llama, rows, temperature=1.0, top_p=1e-9)) == greedy


def test_sampled_frequencies_are_those_of_transformers_top_p() -> None:
    scores = torch.tensor([[2.0, 0.5, 1.0, -1.0, 1.5, -3.0]])
    expected = transformers.TopPLogitsWarper(0.8)(torch.zeros(1, 0, dtype=torch.long), scores.clone()).softmax(-1)[0]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([_sample(scores, 0.8, [generator]) for _ in range(4000)])
    frequencies = torch.bincount(drawn, minlength=6) / len(drawn)
    assert torch.equal(frequencies > 0, expected > 0)
    assert torch.allclose(frequencies, expected, atol=0.03)


def test_states_are_those_of_a_run_over_prompt_and_answer(llama: Any) -> None:
    rows = prompts()
    answers = decode(llama, rows, slots=3, keep_states=True)
    for row, answer in zip(rows, answers):
        embeds = torch.cat([row, llama.get_input_embeddings()(torch.tensor(answer.tokens))])[None]
        last = llama(inputs_embeds=embeds, output_hidden_states=True).hidden_states[-1][0]
        assert answer.states is not None and answer.states.dtype == torch.float16
        assert torch.allclose(answer.states.float(), last[len(row) - 1 : -1], atol=5e-3)
        assert llama.get_output_embeddings()(answer.states.float()).argmax(-1).tolist() == answer.tokens
    assert decode(llama, rows[:1])[0].states is None


def test_out_of_memory_halves_the_rows_and_changes_no_token(llama: Any) -> None:
    rows = prompts()
    said: list[str] = []
    calls: list[int] = []

    def refuse(_: Any, arguments: Any, given: Any) -> None:
        batch = len(given["input_ids"] if "input_ids" in given else given["inputs_embeds"])
        calls.append(batch)
        if batch > 2 and len(calls) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    expected = decode(llama, rows)
    handle = llama.register_forward_pre_hook(refuse, with_kwargs=True)
    decoder = Decoder(llama, Decoding(max_new_tokens=20), 8, stop, said.append)
    answers = decoder.run(Prompts([len(row) for row in rows], lambda i: rows[i], 5), [0] * len(rows))
    handle.remove()
    assert answers == expected
    assert decoder.slots <= 2
    assert "out of memory" in said[0] and f"{decoder.slots} prompts at a time" in said[-1]


def test_out_of_memory_with_one_row_is_one_clear_error(llama: Any) -> None:
    def refuse(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = llama.register_forward_pre_hook(refuse)
    with pytest.raises(UserError, match="out of memory with a single prompt of up to 30 tokens"):
        decode(llama, prompts())
    handle.remove()


def test_another_fault_is_not_taken_for_lack_of_memory(llama: Any) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("shapes do not match")

    handle = llama.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="shapes"):
        decode(llama, prompts())
    handle.remove()


def row(tokens: Sequence[int], n: int) -> Row:
    made = Row(0, 9, torch.Generator())
    for token in tokens:
        made.append(token, n)
    return made


@settings(max_examples=60, deadline=None)
@given(
    answers=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=24), min_size=1, max_size=5),
    n=st.integers(0, 5),
    penalty=st.sampled_from([1.0, 1.3]),
)
def test_scores_against_loops_are_those_of_transformers_for_any_answers(
    answers: list[list[int]], n: int, penalty: float
) -> None:
    scores = torch.randn(len(answers), 8, generator=torch.Generator().manual_seed(len(answers)))
    expected = scores.clone()
    for at, tokens_of_row in enumerate(answers):
        ids, of_row = torch.tensor([tokens_of_row]), expected[at : at + 1].clone()
        if penalty != 1:
            of_row = transformers.RepetitionPenaltyLogitsProcessor(penalty)(ids, of_row)
        if n:
            of_row = transformers.NoRepeatNGramLogitsProcessor(n)(ids, of_row)
        expected[at] = of_row[0]
    decoder = Decoder(tiny(), Decoding(repetition_penalty=penalty, no_repeat_ngram_size=n), 4, stop, print)
    assert torch.equal(decoder._against_loops([row(answer, n) for answer in answers], scores), expected)


def test_check_against_loops_is_as_many_operations_for_64_rows_as_for_one() -> None:
    class Count(TorchDispatchMode):
        operations = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.operations += 1
            return function(*args, **(kwargs or {}))

    decoder = Decoder(tiny(), Decoding(repetition_penalty=1.2, no_repeat_ngram_size=3), 64, stop, print)
    counts = []
    for count in (1, 64):
        rows = [row([1, 2, 3, 1, 2], 3) for _ in range(count)]
        with Count() as counted:
            scores = decoder._against_loops(rows, torch.zeros(count, VOCABULARY))
        assert bool((scores[:, 3] == -torch.inf).all())
        counts.append(counted.operations)
    assert counts[0] == counts[1]
