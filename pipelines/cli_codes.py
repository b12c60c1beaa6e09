"""The commands on what a trained head has learnt: export its codes, probe them, draw them."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pipelines.options import CacheOpt, DeviceOpt, ManifestArg, OverwriteOpt, PresetOpt, interruptible

app = typer.Typer()

RunArg = Annotated[Path, typer.Argument(help="Run folder of a head that has codes (encoder_decoder).", metavar="RUN")]


@app.command()
@interruptible("What was whole is committed; run the same command to go on.")
def codes(
    manifest: ManifestArg,
    run: RunArg,
    cache: CacheOpt = Path("cache"),
    dtype: Annotated[str, typer.Option("--dtype", help="Type they are stored in: float32 or float16.")] = "float32",
    device: DeviceOpt = None,
) -> None:
    """Export the codes of a trained head into the cache: one stream for each fold's model."""
    from featcache.manifest import Manifest
    from pipelines import codes as pipeline
    from pipelines import show

    with show.bar("codes", " utt") as progress:
        names = pipeline.run(run, Manifest.read(manifest), cache, dtype, device or "auto", progress)
    for fold, name in names.items():
        typer.echo(f"{fold}: {name}")


@app.command()
@interruptible("The fold in hand is not finished; run the same command to go on with it.")
def probe(
    manifest: ManifestArg,
    run: RunArg,
    target: Annotated[
        str, typer.Option("--target", help="What to look for: speaker, emotion, sex, phone, or a column.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Run folder to write.")],
    cache: CacheOpt = Path("cache"),
    preset: PresetOpt = "makiuchi-probe",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE: fit.steps=500, settings.hidden=[256,128].")
    ] = None,
    device: DeviceOpt = None,
    overwrite: OverwriteOpt = False,
) -> None:
    """Train a probe on the codes of a head: can the speaker, emotion, sex or phone be told from them?

    Speaker: 80 % of the utterances of each speaker whom the head was trained on against the other 20 % (Makiuchi et al.
    2021, section 6.2). All else: the run's own folds, whose test speakers neither the head nor the probe has heard.
    """
    from featcache.manifest import Manifest
    from pipelines import codes as exporting
    from pipelines import config, show
    from pipelines import probe as pipeline

    utterances, tell = Manifest.read(manifest), partial(typer.echo, err=True)
    wanted = config.train_config(config.read_preset(preset), {"device": device}, settings or [])
    with show.bar("codes", " utt") as progress:
        names = exporting.run(run, utterances, cache, device=wanted.device, on_progress=progress)
    with show.bar(f"probe for {target}") as progress:
        found = pipeline.run(run, utterances, cache, out, target, wanted, names, overwrite, progress, tell)
    typer.echo(show.metrics(found))
    typer.echo(f"Wrote: {out}")


@app.command()
def project(
    manifest: ManifestArg,
    runs: Annotated[list[Path], typer.Argument(help="Run folders of heads that have codes.", metavar="RUN...")],
    cache: CacheOpt = Path("cache"),
    out: Annotated[Path, typer.Option("--out", help="Picture to write: png, svg or pdf.")] = Path("codes.png"),
    fold: Annotated[str | None, typer.Option("--fold", help="Fold whose model is shown.", show_default="first")] = None,
    method: Annotated[str, typer.Option("--method", help="tsne or pca.")] = "tsne",
) -> None:
    """Draw codes in two dimensions, by emotion, speaker and sex: what the bottleneck keeps apart, and what it mixes."""
    from featcache.manifest import Manifest
    from pipelines import codes as exporting
    from pipelines import project as pipeline
    from pipelines import show
    from pipelines.reporting.wording import distinct

    utterances = Manifest.read(manifest)
    titles = distinct([str(run.resolve()) for run in runs])
    exported = {}
    for title, run in zip(titles, runs, strict=True):
        with show.bar(f"codes of {title}", " utt") as progress:
            exported[title] = (run, exporting.run(run, utterances, cache, on_progress=progress))
    typer.echo(f"Wrote {pipeline.run(exported, utterances, cache, out, fold, method)}.")
