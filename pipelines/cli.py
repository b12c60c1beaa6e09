"""The commands. Each is thin: it reads its options and calls one ``run`` of :mod:`pipelines`.

Exit codes: 0 all done; 1 an error, told in a sentence; 2 wrong usage; 3 done, but some utterances failed or are
missing; 130 interrupted.
"""

import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from featcache.errors import FeatcacheError
from pipelines import (
    cli_ablate,
    cli_alignment,
    cli_augment,
    cli_codes,
    cli_compare,
    cli_finetune,
    cli_reproduce,
    cli_runs,
)  # fmt: skip
from pipelines.options import (
    PARTLY,
    AllowOpt,
    CacheArg,
    CacheOpt,
    DeviceOpt,
    DevicesOpt,
    DropUnlabelledOpt,
    FoldsOpt,
    LabelOpt,
    ManifestArg,
    MissingOpt,
    OverwriteOpt,
    PresetOpt,
    ValidationByOpt,
    ValidationOpt,
    WorkersOpt,
    interruptible,
)

app = typer.Typer(
    name="featcache",
    help="Run the big frozen models once, keep all that they give, and train light heads from the cache in minutes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def corpus(
    name: Annotated[str, typer.Argument(help="Corpus, such as iemocap, emodb or demo (featcache list).")],
    root: Annotated[Path, typer.Argument(help="Folder of its release (for demo: where to make it).")],
    out: Annotated[Path, typer.Option("--out", help="Manifest to write.")] = Path("manifest.jsonl"),
    settings: Annotated[list[str] | None, typer.Option("--set", help="Option of the corpus, KEY=VALUE.")] = None,
) -> None:
    """Read a corpus in the form of its release, and write a manifest."""
    from pipelines import corpora

    manifest = corpora.run(name, root, out, settings or [])
    typer.echo(corpora.describe(manifest))
    typer.echo(f"Wrote {out}.")


@app.command()
def export(
    manifest: ManifestArg,
    out: Annotated[Path, typer.Option("--out", help="File to write.")],
    form: Annotated[str, typer.Option("--form", help="csv or emobox.")] = "csv",
) -> None:
    """Write a manifest as plain CSV or as EmoBox's JSONL."""
    from pipelines import corpora

    corpora.export(manifest, out, form)
    typer.echo(f"Wrote {out}.")


@app.command()
def check(
    manifest: Annotated[Path, typer.Argument(help="Manifest, or a run folder.", metavar="MANIFEST|RUN")],
    folds: Annotated[
        str | None,
        typer.Option(
            "--folds",
            help="Check these folds too: session, speaker, split, column:NAME, random:K, stratified:70/20/10, "
            "within:KIND or a file.",
        ),
    ] = None,
    allow: AllowOpt = None,
    drop_unlabelled: Annotated[
        bool, typer.Option("--drop-unlabelled", help="Leave utterances without a label out of the folds.")
    ] = False,
    root: Annotated[Path | None, typer.Option("--root", help="Refuse audio outside this folder.")] = None,
) -> None:
    """Check a manifest: every recording decoded, every fold free of leaks; or a run: nothing chosen on test data."""
    from pipelines import check as pipeline

    problems = pipeline.run(manifest, folds, allow or [], root, typer.echo, drop_unlabelled)
    raise typer.Exit(PARTLY if problems else 0)


@app.command()
@interruptible("What was whole is committed; run the same command to go on.")
def extract(
    manifest: ManifestArg,
    cache: CacheOpt = Path("cache"),
    stream: Annotated[list[str] | None, typer.Option("--stream", help="Stream to extract; repeat for several.")] = None,
    preset: PresetOpt = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Setting of a stream, STREAM.KEY=VALUE; repeat for several.")
    ] = None,
    backend: Annotated[str | None, typer.Option("--backend", help="zarr or hdf5.", show_default="zarr")] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="Type frames are stored in: float16, float32, int8.", show_default="float16"),
    ] = None,
    compute_dtype: Annotated[
        str | None,
        typer.Option(
            "--compute-dtype", help="Type models compute in: float32, bfloat16, float16.", show_default="float32"
        ),
    ] = None,
    tier: Annotated[
        str | None,
        typer.Option("--tier", help="frames, or stats to keep only mean and std over time.", show_default="frames"),
    ] = None,
    device: DevicesOpt = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Most utterances in a batch.", show_default="8")
    ] = None,
    compress: Annotated[
        bool | None, typer.Option("--compress/--no-compress", help="Smaller parts, slower to read.")
    ] = None,
    workers: WorkersOpt = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show sizes, parts and time, and compute nothing.")
    ] = False,
) -> None:
    """Compute what a cache lacks of some streams, and commit it part by part; run again to resume."""
    from featcache.manifest import Manifest
    from pipelines import config, show
    from pipelines import extract as pipeline
    from pipelines.align import describe as describe_alignment

    options = {
        "backend": backend, "dtype": dtype, "compute_dtype": compute_dtype, "tier": tier, "device": device,
        "batch_size": batch_size, "compress": compress, "workers": workers,
    }  # fmt: skip
    wanted = config.extract_config(config.read_preset(preset), stream or [], options, settings or [])
    utterances = Manifest.read(manifest)
    if dry_run:
        planned, waiting = pipeline.dry_run(wanted, utterances, cache)
        typer.echo(show.plan(planned, waiting, pipeline.free_bytes(cache)))
        raise typer.Exit(PARTLY if any(item.plan.failures for item in planned) else 0)

    def told(summary: Any) -> None:
        typer.echo(show.summary(summary, describe_alignment(cache, summary.stream, utterances.ids)))

    summaries = pipeline.run(wanted, utterances, cache, told)
    raise typer.Exit(PARTLY if any(summary.failures for summary in summaries) else 0)


@app.command()
def info(cache: CacheArg) -> None:
    """Show what a cache holds: streams, utterances, frames, sizes."""
    from pipelines import show

    typer.echo(show.info(cache))


@app.command()
def coverage(
    cache: CacheArg,
    manifest: ManifestArg,
    inputs: Annotated[
        bool, typer.Option("--inputs/--no-inputs", help="Compare every recording and text with what was computed.")
    ] = True,
) -> None:
    """Show which utterances of a manifest each stream holds, lacks, holds for another input, or could not compute."""
    from pipelines import show

    text, whole = show.coverage(cache, manifest, inputs)
    typer.echo(text)
    raise typer.Exit(0 if whole else PARTLY)


@app.command()
def verify(
    cache: CacheArg,
    fast: Annotated[bool, typer.Option("--fast", help="Shapes and types only, not every byte.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Drop what is broken; the same extract then computes it again.")
    ] = False,
) -> None:
    """Compare every byte of a cache with the checksums in its indices.

    Exit code 1: something is broken; 3: it was, and --repair dropped it.
    """
    from pipelines import verify as pipeline

    problems = pipeline.run(cache, not fast, typer.echo, repair)
    raise typer.Exit(0 if not problems else PARTLY if repair else 1)


@app.command("train-heads")
@interruptible("The run in hand is not finished; run the same command to go on with it.")
def train_heads(
    manifest: ManifestArg,
    cache: CacheOpt = Path("cache"),
    out: Annotated[Path, typer.Option("--out", help="Run folder to write.")] = Path("runs/run"),
    head: Annotated[str | None, typer.Option("--head", help="Head (featcache list).", show_default="layer_mix")] = None,
    stream: Annotated[list[str] | None, typer.Option("--stream", help="Stream it reads, kind or full name.")] = None,
    preset: PresetOpt = None,
    folds: FoldsOpt = None,
    validation: ValidationOpt = None,
    validation_by: ValidationByOpt = None,
    allow: AllowOpt = None,
    missing: MissingOpt = None,
    label: LabelOpt = None,
    drop_unlabelled: DropUnlabelledOpt = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="KEY=VALUE: fit.steps=500, fit.learning_rate=[1e-3,1e-4], settings.projector_dim=64."
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option("--seeds", help="Train once with each of these, such as 0,1,2, into OUT/seed-0 and so on."),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard event files into the run folder too.")
    ] = False,
    device: DeviceOpt = None,
    overwrite: OverwriteOpt = False,
) -> None:
    """Train a head on every fold from the cache, and write scores, metrics and weights.

    A preset with several runs trains each into a folder of its own in --out, unless --head names one.
    """
    from featcache.manifest import Manifest
    from pipelines import config, show
    from pipelines import train_heads as pipeline
    from pipelines.resolve import meant

    options: dict[str, Any] = {
        "head": head, "streams": tuple(stream or ()), "folds": folds, "validation": validation,
        "validation_by": validation_by, "allow": tuple(allow or ()), "missing": missing, "label": label,
        "drop_unlabelled": drop_unlabelled, "device": device,
    }  # fmt: skip
    chosen = config.read_preset(preset)
    runs = {} if head else config.preset_runs(chosen)
    for folder, one in {out / name: one for name, one in runs.items()}.items() or [(out, chosen)]:
        wanted = config.train_config(one, options, settings or [])
        named = meant(wanted, one, cache)
        done = []
        for place, seeded in config.seeded(wanted, folder, seeds):
            with show.bar(wanted.head) as progress:
                tell = partial(typer.echo, err=True)
                trained = pipeline.run(seeded, Manifest.read(manifest), cache, place, overwrite, progress, tell, named)
            done.append(trained.run)
            typer.echo(show.metrics(trained.run))
            typer.echo(f"{'Already there' if trained.skipped else 'Wrote'}: {place}")
            if tensorboard:
                from pipelines import tensorboard as events

                typer.echo(f"TensorBoard: {events.run(place)}")
        if seeds:
            typer.echo(show.over_seeds(done))


@app.command()
def fuse(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders with a scores.csv.", metavar="RUN...")],
    weights: Annotated[
        str,
        typer.Option(
            "--weights",
            help="One weight a run, such as 0.6,1.0; or search: the best for each fold; or stack: a learned model; or "
            "joint: a linear layer on each run's probabilities, summed.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Run folder to write.")],
    space: Annotated[str, typer.Option("--space", help="prob: weigh probabilities; log: their logarithms.")] = "prob",
    search_on: Annotated[
        str | None,
        typer.Option(
            "--search-on",
            help="What search, stack and joint look at: the fold's validation scores, or test scores of other-folds.",
            show_default="validation",
        ),
    ] = None,
    select_by: Annotated[
        str | None,
        typer.Option("--select-by", help="What search, stack and joint aim at: ua or wa.", show_default="ua"),
    ] = None,
    standardise: Annotated[
        bool, typer.Option("--standardise", help="Standardise each run's scores by its validation scores first.")
    ] = False,
    overwrite: OverwriteOpt = False,
) -> None:
    """Fuse the scores of several runs over the same utterances."""
    from pipelines import fuse as pipeline
    from pipelines import show

    tell = partial(typer.echo, err=True)
    fused = pipeline.run(runs, weights, out, space, standardise, overwrite, tell, search_on, select_by)
    typer.echo(show.metrics(fused))
    typer.echo(f"Wrote: {out}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders of runs.", metavar="RUN...")],
    out: Annotated[Path, typer.Option("--out", help="HTML file to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option("--title", help="Title of the page.")] = "featcache report",
    details: Annotated[
        int, typer.Option("--details", min=0, help="Most runs shown in full: the best on validation.")
    ] = 20,
    audio: Annotated[
        bool,
        typer.Option(
            "--audio",
            help="Put recordings of the hardest utterances into the page. It then holds a part of the corpus: mind the "
            "licence before you hand it on.",
        ),
    ] = False,
    also: Annotated[
        list[str] | None,
        typer.Option(
            "--also", help="Write md, latex, svg or pdf too, into the folder NAME-files beside it; repeatable."
        ),
    ] = None,
) -> None:
    """Write one HTML page on some runs: tables, tests, confusion, folds, speakers, layers; it opens anywhere.

    With --also, what a paper takes from it: report.md, LaTeX tables, every figure as SVG or PDF.
    """
    from pipelines import report as pipeline
    from pipelines import report_files, show

    if also:
        folder = out.with_name(f"{out.stem}-files")
        with show.bar("files", " runs") as progress:
            written = report_files.write(runs, folder, title, also, details, progress)
        typer.echo(f"Wrote {len(written)} files to {folder}.")
    with show.bar("report", " runs") as progress:
        pipeline.run(runs, out, title, details, audio, progress)
    typer.echo(f"Wrote {out}.")


for more in (
    cli_augment, cli_finetune, cli_ablate, cli_compare, cli_runs, cli_alignment, cli_codes, cli_reproduce,
):  # fmt: skip
    app.add_typer(more.app)


@app.command()
def describe(
    head: Annotated[str | None, typer.Argument(help="Head (featcache list).", metavar="HEAD")] = None,
    preset: PresetOpt = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Setting of the head, KEY=VALUE; repeat for several.")
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(
            "--layers",
            min=1,
            help="Layers of the stream it reads, where its checkpoint is not here.",
            show_default="the preset's, or 25",
        ),
    ] = None,
    dim: Annotated[
        int | None,
        typer.Option("--dim", min=1, help="Size of a frame, likewise.", show_default="the preset's, or 1024"),
    ] = None,
    classes: Annotated[int, typer.Option("--classes", min=2, help="Number of classes.")] = 4,
) -> None:
    """Show a head's blocks, their outputs and parameters, and the streams that it needs."""
    from pipelines import config
    from pipelines import describe as pipeline

    typer.echo(pipeline.run(head, config.read_preset(preset), settings or [], layers, dim, classes))


@app.command("list")
def list_plugins() -> None:
    """List corpora, streams, aligners, heads, backends, ablations, papers and presets."""
    from pipelines import show

    typer.echo(show.plugins())


@app.command()
def doctor() -> None:
    """Show what this machine has: packages, devices, and the programs outside Python that some streams use."""
    from pipelines import doctor as pipeline

    text, usable = pipeline.run()
    typer.echo(text)
    raise typer.Exit(0 if usable else 1)


def main() -> None:
    """Run the commands; an error of this project or of the system becomes a sentence and exit code 1."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_TqdmHandler()])
    # Torch looks when it is first asked for memory. Gradients come fresh from the system at each step: with pages of
    # 4 KiB a third of a float32 step of the full-size encoder-decoder is page faults (docs/performance.md).
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        app()
    except FeatcacheError as error:
        typer.secho(f"error: {error}", err=True, fg=typer.colors.RED)
        sys.exit(1)
    except OSError as error:  # a full disk, a path that cannot be written
        told = error.strerror and error.filename is not None
        typer.secho(f"error: {f'{error.strerror}: {error.filename}' if told else error}", err=True, fg=typer.colors.RED)
        sys.exit(1)


class _TqdmHandler(logging.Handler):
    """Writes log lines above a progress bar rather than through it."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


if __name__ == "__main__":
    main()
