"""Cached views: which are read, how they are drawn, that nothing but training reads them, and what is refused."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file

from tests.stage2_segment.conftest import add_views, make_cache
from tests.stage2_segment.interruptions import stopped_at_save
from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.stage2_segment import checkpoint
from zeus_union.stage2_segment.checkpoint import load_config
from zeus_union.stage2_segment.cli import main
from zeus_union.stage2_segment.device import make_accelerator
from zeus_union.stage2_segment.evaluation.evaluate import evaluate_run
from zeus_union.stage2_segment.inputs.run_inputs import RunInputs
from zeus_union.stage2_segment.inputs.slices import Batch, SliceData, draw_views
from zeus_union.stage2_segment.inputs.staging import Staging
from zeus_union.stage2_segment.plan import plan_run
from zeus_union.stage2_segment.training.learner import Learner
from zeus_union.stage2_segment.training.messages import say_what_views_bring
from zeus_union.stage2_segment.training.train import shared_plan, train_run, train_together

QUICK: dict[str, Any] = {
    "fusion": "hybrid",
    "modalities": ["T1"],
    "train_subjects": ["ada"],
    "test_subjects": ["ben"],
    "batch_size": 2,
    "epochs": 2,
}
CPU = torch.device("cpu")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "weights" / "last.safetensors")


def same(a: Path, b: Path) -> bool:
    one, other = weights(a), weights(b)
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def viewed_run(viewed_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs with both views."""
    run = tmp_path_factory.mktemp("runs") / "viewed"
    train_run(viewed_cache, run, device="cpu", **QUICK)
    return run


# How they are read.


@pytest.mark.parametrize("encoder", ["toy", None], ids=["embeddings", "pictures"])
@pytest.mark.parametrize("resident", ["ram", "disk", "device"])
def test_a_place_is_a_slice_at_a_view_wherever_the_rows_are_kept(
    viewed_cache: Path, resident: str, encoder: str | None
) -> None:
    device = torch.device("cuda") if resident == "device" else CPU
    if resident == "device" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    with Cache(viewed_cache) as cache:
        rows = cache.rows_of(["cleo", "ada"])
        data = SliceData(cache, encoder, ["T2"], rows, device, resident=resident, views=2)
        plain = SliceData(cache, encoder, ["T2"], rows, device, resident=resident)
        places = np.array([4, 4 + 6, 4 + 12, 0 + 6, 5])
        views, staging = places // 6, Staging(CPU)
        for batch in (data.batch(places), next(iter(data.batches([places])))):
            assert batch.masks is not None
            np.testing.assert_array_equal(batch.masks.cpu().numpy(), cache.masks(rows[places % 6], views))
        staged = data._stored(places, staging if resident != "device" else None)
        for part, other in zip(staged, data._stored(places), strict=True):
            assert (part is None) == (other is None) and (part is None or torch.equal(part, other))
        if encoder is None:
            expected = cache.images(rows[places % 6], views)[:, 1:] / 255
        else:
            stored = cache.read_embeddings("toy", rows[places % 6], [1], views=views)
            expected = stored.values * stored.scale[..., None, None] + stored.offset[..., None, None]
        np.testing.assert_allclose(batch.images.cpu().numpy(), expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(data.batch(np.array([4])).images, plain.batch(np.array([4])).images)
        in_order = [positions.tolist() for positions, _ in data.in_order(4)]
        assert in_order == [[0, 1, 2, 3], [4, 5]]  # the slices themselves


def test_memory_is_counted_for_the_slices_and_every_view(viewed_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six slices of one modality are 6.4 MiB, three times as many 19."""
    with Cache(viewed_cache) as cache:
        rows = cache.rows_of(["cleo", "ada"])
        for views, free, resident in ((0, 16, "ram"), (1, 16, "disk"), (2, 42, "ram"), (2, 36, "disk")):
            monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free * 2**20))
            assert SliceData(cache, "toy", ["T2"], rows, CPU, views=views).resident == resident


# How they are drawn.


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=12),
    st.integers(0, 5),
    st.tuples(st.integers(0, 5), st.integers(1, 5), st.integers(0, 5)),
    st.integers(1, 4),
)
def test_a_batch_keeps_its_slices_and_processes_share_what_is_drawn(
    positions: list[int], views: int, place: tuple[int, int, int], world: int
) -> None:
    slices = np.array(positions)
    drawn = draw_views(slices, 41, views, *place)
    np.testing.assert_array_equal(drawn % 41, slices)
    assert (drawn // 41 <= views).all() and (drawn >= 0).all()
    np.testing.assert_array_equal(drawn, draw_views(slices, 41, views, *place))
    assert sorted(np.concatenate([drawn[rank::world] for rank in range(world)])) == sorted(drawn)


def test_a_slice_and_its_views_are_drawn_equally_often_and_anew_in_every_epoch_batch_and_seed() -> None:
    slices = np.arange(4)
    drawn = [draw_views(slices, 4, 3, 7, epoch, batch) // 4 for epoch in range(1, 51) for batch in range(10)]
    counts = Counter(np.concatenate(drawn).tolist())
    assert all(abs(counts[view] - 500) < 80 for view in range(4))
    first = draw_views(np.arange(50), 50, 3, 0, 1, 0)
    for other in ((1, 1, 0), (0, 2, 0), (0, 1, 1)):
        assert (draw_views(np.arange(50), 50, 3, *other) != first).any()


def test_every_step_sees_its_slices_texts_with_the_masks_of_a_view(
    viewed_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[NDArray[np.intp], torch.Tensor, torch.Tensor]] = []
    of = RunInputs.of

    def watched(self: RunInputs, positions: NDArray[np.intp], batch: Batch, *rest: Any) -> Any:
        images, text, present = of(self, positions, batch, *rest)
        assert batch.masks is not None
        seen.append((positions, batch.masks.clone(), text.clone()))
        return images, text, present

    monkeypatch.setattr(RunInputs, "of", watched)
    train_run(viewed_cache, tmp_path / "run", device="cpu", **{**QUICK, "epochs": 5, "validate_every": 0})
    with Cache(viewed_cache) as cache:
        rows = cache.rows_of(["ada"])
        texts = cache.text_embeddings("toy", rows)[:, :1]
        of_view = [cache.masks(rows, np.full(3, view)) for view in range(3)]
    views = Counter()
    for positions, masks, text in seen:
        np.testing.assert_array_equal(text.numpy(), texts[positions])
        for position, mask in zip(positions, masks.numpy(), strict=True):
            matching = [view for view in range(3) if (of_view[view][position] == mask).all()]
            assert matching
            views.update(matching if len(matching) == 1 else [])
    assert set(views) == {0, 1, 2}


# What comes of it.


def test_two_runs_are_equal_and_one_without_views_is_another(
    viewed_run: Path, viewed_cache: Path, toy_cache: Path, tmp_path: Path
) -> None:
    config = load_config(viewed_run)
    assert config.recipe.views == 2
    views = {f"{layer}@view{view}" for layer in ("slices", "embeddings/toy") for view in (1, 2)}
    assert set(config.inputs.fingerprints) == set(config.inputs.content) == views | {
        "slices", "embeddings/toy", "instructions/toy"
    }  # fmt: skip
    train_run(viewed_cache, tmp_path / "again", device="cpu", **QUICK)
    assert same(viewed_run, tmp_path / "again")
    train_run(viewed_cache, tmp_path / "none", device="cpu", views=0, **QUICK)
    assert not same(viewed_run, tmp_path / "none")
    assert load_config(tmp_path / "none").recipe.views == 0
    train_run(toy_cache, tmp_path / "before", device="cpu", **QUICK)
    assert same(tmp_path / "none", tmp_path / "before")


@pytest.mark.parametrize("place", [(1, 1), (2, 0), (2, 1)], ids=["in the first epoch", "between", "within the second"])
def test_interrupted_and_resumed_it_draws_the_same_views(
    viewed_run: Path, viewed_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: tuple[int, int]
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(checkpoint, "SAVE_EVERY_S", 0)
    monkeypatch.setattr(checkpoint, "SAVING_SHARE", float("inf"))
    with stopped_at_save(place):
        train_run(viewed_cache, run, device="cpu", **QUICK)
    train_run(viewed_cache, run, device="cpu", resume=True, **QUICK)
    assert same(run, viewed_run)


@pytest.mark.parametrize("stacked", [False, True], ids=["in turn", "stacked"])
def test_beside_others_a_run_draws_the_views_it_draws_alone(
    viewed_run: Path, viewed_cache: Path, tmp_path: Path, stacked: bool
) -> None:
    """One of the others sees two modalities, of which one is dropped now and then; with it none can be stacked."""
    others: list[dict[str, Any]] = [{"modalities": ["T1", "T2"], "modality_drop": 0.5}, {"text": "none"}]
    others = [{"lr": 1e-3}] if stacked else others
    with Cache(viewed_cache) as cache:
        accelerator = make_accelerator("cpu")
        plans = [plan_run(cache, run=tmp_path, **{**QUICK, **other}) for other in ({}, *others)]
        learners = [Learner(cache, plan, tmp_path / str(number), accelerator) for number, plan in enumerate(plans)]
        train_together(cache, learners, accelerator, validate_every=0, stacked=stacked)
        assert len({shared_plan(plan) for plan in plans}) == 1
        assert shared_plan(plan_run(cache, run=tmp_path, views=1, **QUICK)) != shared_plan(plans[0])
    if not stacked:
        assert same(viewed_run, tmp_path / "0")
    else:
        alone, beside = weights(viewed_run), weights(tmp_path / "0")
        for name, tensor in alone.items():
            torch.testing.assert_close(beside[name], tensor, rtol=1e-4, atol=1e-5)


def test_only_training_reads_views(
    viewed_run: Path, viewed_cache: Path, toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even the validation within it; a cache that has none will do for all that comes after."""
    asked: list[int] = []
    init = SliceData.__init__

    def watched(self: SliceData, *args: Any, **options: Any) -> None:
        asked.append(options.get("views", 0))
        init(self, *args, **options)

    monkeypatch.setattr(SliceData, "__init__", watched)
    run = tmp_path / "run"
    train_run(viewed_cache, run, device="cpu", validation_subjects=["cleo"], **{**QUICK, "epochs": 1})
    assert sorted(asked) == [0, 0, 2]  # validation, the choice of post-processing, training
    shutil.copytree(viewed_run, tmp_path / "copy")
    with Cache(toy_cache) as without:
        scores = evaluate_run(tmp_path / "copy", without, device="cpu").rows
    np.testing.assert_equal(scores, evaluate_run(viewed_run, device="cpu").rows)  # NaN is NaN
    assert (tmp_path / "copy" / "evaluation.json").exists()  # it holds what the run evaluates on: no other cache


# What is refused, and what is taken where nothing is said.


@pytest.mark.parametrize(
    ("viewed", "given", "said"),
    [
        (False, {}, True),
        (False, {"recipe": "paper"}, False),
        (False, {"model": "unext"}, False),
        (True, {"views": 0}, False),  # whoever leaves them out knows of them
        (True, {}, False),
    ],
)
def test_where_there_are_none_it_is_said_how_to_have_them(
    toy_cache: Path,
    viewed_cache: Path,
    capsys: pytest.CaptureFixture[str],
    viewed: bool,
    given: dict[str, Any],
    said: bool,
) -> None:
    with Cache(viewed_cache if viewed else toy_cache) as cache:
        say_what_views_bring(cache, [plan_run(cache, run=Path("run"), **given)])
    assert ("build-cache command with --views 2" in " ".join(capsys.readouterr().err.split())) is said


def test_all_views_are_taken_unless_the_recipe_is_the_papers_or_the_model_sees_pictures(viewed_cache: Path) -> None:
    with Cache(viewed_cache) as cache:

        def views(**options: Any) -> int:
            return plan_run(cache, run=Path("run"), **options).recipe.views

        assert (views(), views(views=1), views(views=0), views(text="none")) == (2, 1, 0, 2)
        assert (views(recipe="paper"), views(recipe="paper", views=2)) == (0, 2)
        assert views(model="unet", fusion="early") == views(model="unet", fusion="early", views=0) == 0
        with pytest.raises(UserError, match=r"--views applies to zeus only and this is unet; leave out --views"):
            views(model="unet", fusion="early", views=1)


def test_more_views_than_there_are_is_one_line_with_the_command_that_adds_them(
    viewed_cache: Path, toy_cache: Path, tmp_path: Path
) -> None:
    for cache, has in ((viewed_cache, "2 views"), (toy_cache, "no views")):
        done = CliRunner().invoke(
            main, ["train", "--cache", str(cache), "--views", "4", "--out", str(tmp_path / "run")]
        )
        assert done.exit_code == 2
        assert f"{cache} has {has} of its labelled slices by toy and --views asks for 4" in " ".join(
            done.stderr.split()
        )
        assert "build-cache command with --views 4 adds them" in " ".join(done.stderr.split())
    negative = CliRunner().invoke(main, ["train", "--cache", str(viewed_cache), "--views", "-1"])
    assert negative.exit_code == 2
    assert not (tmp_path / "run").exists()


@pytest.fixture
def another(tmp_path: Path) -> Callable[..., Path]:
    """Makes toy caches of two subjects with views."""
    return lambda count, **how: add_views(make_cache(tmp_path / "toy.h5", ("ada", "ben"), ()), count, **how)


def test_texts_that_name_sides_refuse_mirrored_views(another: Callable[..., Path]) -> None:
    with Cache(another(1, recipe={"mirrored": True})) as cache:
        for text in ("instruction", "shuffled-slices"):
            with pytest.raises(UserError, match=r"are mirrored .* --text none trains without them, --views 0"):
                plan_run(cache, run=Path("run"), text=text)
        assert plan_run(cache, run=Path("run"), text="none").recipe.views == 1
        assert plan_run(cache, run=Path("run"), views=0).recipe.views == 0


def test_views_of_two_kinds_are_not_read_together(another: Callable[..., Path]) -> None:
    path = add_views(another(1), 2, first=2, recipe={"version": 2})
    with Cache(path) as cache:
        with pytest.raises(
            UserError, match=r"slices@view2 .* otherwise than slices@view1 \(version.* --views 1 leaves"
        ):
            plan_run(cache, run=Path("run"))
        assert plan_run(cache, run=Path("run"), views=1).recipe.views == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"other options .*recipe\.views: 2 -> 3"),
        ({"views": 1}, r"other options .*recipe\.views: 2 -> 1"),
        ({"views": 2}, r"other options .*slices@view1"),
    ],
)
def test_a_resumed_run_notices_other_views(
    viewed_run: Path, three_other_views: Path, tmp_path: Path, options: dict[str, int], message: str
) -> None:
    shutil.copytree(viewed_run, tmp_path / "run")
    with pytest.raises(UserError, match=message):
        train_run(three_other_views, tmp_path / "run", device="cpu", resume=True, **{**QUICK, "epochs": 3, **options})


@pytest.fixture(scope="module")
def three_other_views(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_views(make_cache(tmp_path_factory.mktemp("cache") / "other.h5"), 3, recipe={"version": 2})


def test_views_that_were_built_again_with_other_content_are_noticed(
    viewed_run: Path, viewed_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = Cache.content_digest

    def other(self: Cache, layer: str, subjects: Any) -> str:
        return "other" if layer == "embeddings/toy@view2" else digest(self, layer, subjects)

    monkeypatch.setattr(Cache, "content_digest", other)
    shutil.copytree(viewed_run, tmp_path / "run")
    with pytest.raises(UserError, match="started on other data: the cache's embeddings/toy@view2 of its subjects"):
        train_run(viewed_cache, tmp_path / "run", device="cpu", resume=True, **{**QUICK, "epochs": 3})
