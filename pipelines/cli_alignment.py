"""The commands on alignments: make them, compare them, look at them, choose by their quality."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.options import PARTLY, CacheOpt, ManifestArg, WorkersOpt, interruptible

app = typer.Typer()


@app.command()
@interruptible("What was whole is committed; run the same command to go on.")
def align(
    manifest: ManifestArg,
    cache: CacheOpt = Path("cache"),
    aligner: Annotated[str, typer.Option("--aligner", help="Aligner (featcache list).")] = "pocketsphinx",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Setting of the aligner, KEY=VALUE, such as folder=aligned; repeat for several."),
    ] = None,
    inventory: Annotated[
        str, typer.Option("--inventory", help="Phone ids: arpabet128 (English), or occurring (any language).")
    ] = "arpabet128",
    frame_shift_ms: Annotated[int, typer.Option("--frame-shift-ms", help="Time from one frame to the next.")] = 20,
    phones: Annotated[
        bool, typer.Option("--phones/--no-phones", help="Derive the stream of phone ids as well.")
    ] = True,
    backend: Annotated[str | None, typer.Option("--backend", help="zarr or hdf5.", show_default="zarr")] = None,
    workers: WorkersOpt = None,
) -> None:
    """Find out when each word and phone is spoken, or import it; keep the times and a phone id for each frame."""
    from featcache.manifest import Manifest
    from pipelines import align as pipeline
    from pipelines import show

    utterances = Manifest.read(manifest)
    derived: dict[str, Any] = {"inventory": inventory, "frame_shift_ms": frame_shift_ms}
    options = {"backend": backend, "workers": workers}

    def told(summary: Any) -> None:
        typer.echo(show.summary(summary, pipeline.describe(cache, summary.stream, utterances.ids)))

    done = pipeline.run(utterances, cache, aligner, settings or [], derived if phones else None, options, told)
    raise typer.Exit(PARTLY if any(summary.failures for summary in done) else 0)


@app.command("align-score")
def align_score(
    a: Annotated[str, typer.Argument(help="The reference: a stream's folder, or its name in --cache.", metavar="A")],
    b: Annotated[str, typer.Argument(help="What is compared with it, likewise.", metavar="B")],
    cache: CacheOpt = Path("cache"),
    out: Annotated[Path | None, typer.Option("--out", help="Folder for score.json and utterances.csv.")] = None,
) -> None:
    """Compare two alignments: boundary errors in ms, share of frames alike, each by class of phone."""
    from pipelines import align_score as pipeline

    typer.echo(pipeline.run(a, b, cache, out))


@app.command()
def keep(
    manifest: ManifestArg,
    where: Annotated[
        list[str], typer.Option("--where", help="Condition on a quality column, such as snr>=5; repeat for several.")
    ],
    cache: CacheOpt = Path("cache"),
    out: Annotated[Path, typer.Option("--out", help="Manifest to write.")] = Path("kept.jsonl"),
    alignment: Annotated[
        str, typer.Option("--alignment", help="Which alignment, where there are several: full name or aligner.")
    ] = "alignment",
) -> None:
    """Write a manifest of the utterances whose alignment is good enough, by the aligner's own judgement."""
    from pipelines import keep as pipeline

    typer.echo(pipeline.run(manifest, cache, where, out, alignment))
    typer.echo(f"Wrote {out}.")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Id of the utterance.", metavar="ID")],
    manifest: Annotated[Path, typer.Option("--manifest", help="Manifest that has it.")] = Path("manifest.jsonl"),
    cache: CacheOpt = Path("cache"),
    alignment: Annotated[
        list[str] | None,
        typer.Option(
            "--alignment", help="Alignment to draw: full name or aligner; repeat to compare.", show_default="all"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Picture to write: .png, .svg or .pdf.", show_default="ID.png")
    ] = None,
) -> None:
    """Draw one utterance: waveform, mel spectrogram, words and phones."""
    from pipelines import picture

    typer.echo(f"Wrote {picture.run(manifest, name, cache, alignment or [], out)}.")
