"""Zeus: LLM instructions cached once, multimodal mask decoders trained in minutes.

From images to masks, after `zeus-instruct fetch --models lite`:

    from pathlib import Path
    import zeus_union as zeus
    from zeus_union.stage1_instruct.building.job import Splits
    from zeus_union.stage1_instruct.models.assembly import load_models
    from zeus_union.stage1_instruct.profiles.profile import load_profile

    dataset = zeus.open_dataset("demo", Path("phantoms"))    # or "nnunet" and the folder of your own studies
    models = load_models(load_profile("lite"))    # the frozen ones; on a GPU load_models(..., "cuda")
    # Without trained_for the texts of an untrained projection say the same of every image.
    options = zeus.BuildOptions(Path("demo.h5"), slice_step=4, trained_for=Splits((0,), asked=True))
    zeus.build_cache(dataset, models, options)
    zeus.train_run(Path("demo.h5"), Path("run"), fold=0, epochs=10, batch_size=3)
    print(zeus.evaluate_run(Path("run")).summary()["mean_over_classes"])
    with zeus.Cache("demo.h5") as cache:
        zeus.predict_run(Path("run"), cache, Path("masks"))    # NIfTI in each study's own grid
    result = zeus.load_run("run").segment("patient7")    # a new study, DICOM or NIfTI: mask, statistics, texts

Nothing below is imported before it is used: torch and its friends take seconds.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zeus_union.cache.reader import Cache
    from zeus_union.pipelines.outputs.results import write_results
    from zeus_union.pipelines.segment.segmenter import load_run, segment_study
    from zeus_union.stage1_instruct.building.job import BuildOptions
    from zeus_union.stage1_instruct.building.loop import build_cache
    from zeus_union.stage1_instruct.datasets import open_dataset
    from zeus_union.stage1_instruct.studies.study import Dataset, Study
    from zeus_union.stage2_segment.evaluation.evaluate import evaluate_run
    from zeus_union.stage2_segment.predict import predict_run
    from zeus_union.stage2_segment.training.train import train_run

    __version__: str

__all__ = [
    "BuildOptions",
    "Cache",
    "Dataset",
    "Study",
    "__version__",
    "build_cache",
    "evaluate_run",
    "load_run",
    "open_dataset",
    "predict_run",
    "segment_study",
    "train_run",
    "write_results",
]

# The same names once more, for the interpreter, which skips the imports above.
_HOMES = {
    "BuildOptions": "stage1_instruct.building.job",
    "Cache": "cache.reader",
    "Dataset": "stage1_instruct.studies.study",
    "Study": "stage1_instruct.studies.study",
    "build_cache": "stage1_instruct.building.loop",
    "evaluate_run": "stage2_segment.evaluation.evaluate",
    "load_run": "pipelines.segment.segmenter",
    "open_dataset": "stage1_instruct.datasets",
    "predict_run": "stage2_segment.predict",
    "segment_study": "pipelines.segment.segmenter",
    "train_run": "stage2_segment.training.train",
    "write_results": "pipelines.outputs.results",
}

if not TYPE_CHECKING:  # a type checker that saw __getattr__ would believe in every name

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from importlib.metadata import version

            value = version("zeus-union")
        elif name in _HOMES:
            from importlib import import_module

            value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
