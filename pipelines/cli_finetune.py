"""The command that fine-tunes an encoder fold by fold."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.options import (
    PARTLY,
    AllowOpt,
    CacheOpt,
    DeviceOpt,
    DropUnlabelledOpt,
    FoldsOpt,
    LabelOpt,
    ManifestArg,
    MissingOpt,
    OverwriteOpt,
    ValidationByOpt,
    ValidationOpt,
    interruptible,
)

app = typer.Typer()


@app.command()
@interruptible("Run the same command to go on from the last state that was kept, at most a minute ago.")
def finetune(
    manifest: ManifestArg,
    cache: CacheOpt = Path("cache"),
    out: Annotated[Path, typer.Option("--out", help="Run folder to write.")] = Path("runs/finetuned"),
    stream: Annotated[
        list[str] | None,
        typer.Option("--stream", help="Where training starts: waveform, conv_features, tokens, ge2e_mels, or states."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset", help="A preset's name or a YAML file.", show_default="finetune; for ge2e streams finetune-ge2e"
        ),
    ] = None,
    head: Annotated[str | None, typer.Option("--head", help="Head that holds it.", show_default="finetune")] = None,
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
            "--set",
            help="KEY=VALUE: settings.checkpoint=FOLDER, settings.freeze=front_end, fit.steps=20 epochs, fit.average=5",
        ),
    ] = None,
    extract: Annotated[
        list[str] | None,
        typer.Option("--extract", help="Extract this stream of every fold's encoder right away; repeatable."),
    ] = None,
    device: DeviceOpt = None,
    overwrite: OverwriteOpt = False,
) -> None:
    """Fine-tune a speech or text encoder on every fold, and save it as a checkpoint a fold, in OUT/encoders/FOLD.

    The encoder is trained with the mean over time and a linear layer, from the stream that is read upwards: from the
    waveform, or from states that were extracted once and lie below all that trains. The checkpoints are ordinary
    Hugging Face folders, and remember which utterances they have learnt from.

    Heads are then trained on the features of their own fold's encoder, and never on another's:

      featcache extract MANIFEST --stream hidden_states --set hidden_states.checkpoint=OUT/encoders --set
      hidden_states.tap=final_norm --set hidden_states.layers=last

      featcache train-heads MANIFEST --stream hidden_states@NAME, where NAME is the last part of OUT.

    With these settings, which --extract takes too, a stream is what was pooled here; without layers=last it has all
    layers.
    """
    options: dict[str, Any] = {
        "head": head, "streams": tuple(stream or ()), "folds": folds, "validation": validation,
        "validation_by": validation_by, "allow": tuple(allow or ()), "missing": missing, "label": label,
        "drop_unlabelled": drop_unlabelled, "device": device,
    }  # fmt: skip
    raise typer.Exit(_run(manifest, cache, out, preset, options, settings or [], extract or [], overwrite))


def _run(
    manifest: Path, cache: Path, out: Path, preset: str | None, options: dict[str, Any], settings: list[str],
    extract: list[str], overwrite: bool,
) -> int:  # fmt: skip
    from featcache.manifest import Manifest
    from pipelines import config, show
    from pipelines import extract as extraction
    from pipelines import finetune as pipeline
    from pipelines.resolve import meant

    chosen = config.read_preset(preset or pipeline.default_preset(options["streams"]))
    wanted = pipeline.configured(chosen, options, settings)
    named = meant(wanted, chosen, cache)
    utterances = Manifest.read(manifest)
    later = pipeline.extraction(chosen, extract, out, options["device"])
    pipeline.check_extraction(later, wanted, cache)
    tell = partial(typer.echo, err=True)
    with show.bar(wanted.head) as progress:
        trained = pipeline.train(wanted, utterances, cache, out, overwrite, progress, tell, named)
    with show.bar("encoders", " saved") as progress:
        done = pipeline.save(trained, wanted, utterances, cache, out, progress, named)
    typer.echo(show.metrics(done.trained.run))
    typer.echo(f"{'Already there' if done.trained.skipped else 'Wrote'}: {out}")
    typer.echo(f"Encoders of {len(done.encoders)} folds: {out / pipeline.ENCODERS}")
    if later is None:
        typer.echo(pipeline.next_commands(done, manifest, cache, out))
        return 0
    summaries = extraction.run(later, utterances, cache, lambda summary: typer.echo(show.summary(summary, "")))
    names = " ".join(f"--stream {done.family(kind, cache)}" for kind in extract)
    typer.echo(f"Train on them, each fold on those of its own encoder: {names}")
    return PARTLY if any(summary.failures for summary in summaries) else 0
