"""The commands on trained runs: predict with them, make one file of them, show them in TensorBoard."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pipelines.options import PARTLY, DeviceOpt, interruptible

app = typer.Typer()

RunArg = Annotated[Path, typer.Argument(help="Run folder, or a file that pack made.", metavar="RUN")]


@app.command()
@interruptible("Nothing was written; features in --cache are kept.")
def predict(
    run: RunArg,
    audio: Annotated[list[Path] | None, typer.Argument(help="Recordings.", metavar="[AUDIO]...")] = None,
    manifest: Annotated[
        Path | None, typer.Option("--manifest", help="Utterances to predict, instead of recordings.")
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="What is said; repeat for several recordings, or give texts and no recording."),
    ] = None,
    text_file: Annotated[
        Path | None, typer.Option("--text-file", help="The same from a file, one text a line.")
    ] = None,
    speaker: Annotated[
        str | None,
        typer.Option(
            "--speaker", help="Who speaks, for heads that read a speaker's embedding; may be one of the run's."
        ),
    ] = None,
    further: Annotated[
        list[Path] | None, typer.Option("--with", help="Another run to fuse with RUN; repeat for several.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", help="One weight a run, RUN first, such as 0.6,1.0.", show_default="equal"),
    ] = None,
    fold: Annotated[
        str,
        typer.Option(
            "--fold",
            help="all: mean of all folds' models; a fold's name: that one; own: for utterances of the run itself, the "
            "models that tested them, which gives the run's own scores.",
        ),
    ] = "all",
    form: Annotated[
        str | None,
        typer.Option("--form", help="jsonl, csv or table.", show_default="by --out's ending, else table"),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="File to write, instead of the terminal.")] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Cache to take features from, and to keep new ones in.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Setting of a stream, by kind or full name, such as hidden_states.checkpoint=FOLDER; repeatable.",
        ),
    ] = None,
    device: DeviceOpt = None,
) -> None:
    """Predict emotions: from recordings (or texts) to class probabilities, by a trained run or several fused ones.

    What the run needs is extracted by the code it was trained with, and refused where this installation would compute
    something else. A run has a model for each fold; by default their probabilities are averaged. A fused run is
    predicted by its weights, from the runs that lie beside it. Exit code 3: some utterances could not be predicted.
    """
    from pipelines import pack, show
    from pipelines import predict as pipeline
    from pipelines import predictions as shown
    from pipelines.config import parse_overrides

    shown.check_form(form)
    shown.check_out(out, audio or [])
    utterances = shown.utterances(audio or [], manifest, text or [], text_file, speaker)
    tell = partial(typer.echo, err=True)
    overrides, messages = parse_overrides(settings or []), list[str]()
    with pack.opened([run, *(further or [])]) as folders, show.bar("features", " utt") as progress:
        done = pipeline.run(
            folders, utterances, weights, fold, cache, device or "auto", overrides, progress, messages.append
        )
    for message in (*messages, *(f"{name}: {reason}" for name, reason in done.failures.items())):
        tell(message)
    if not done.ids:
        tell(f"None of the {len(utterances)} could be predicted.")
        raise typer.Exit(1)
    shown.write(done, form, out, typer.echo)
    raise typer.Exit(PARTLY if done.failures else 0)


@app.command()
def pack(
    run: Annotated[Path, typer.Argument(help="Run folder.", metavar="RUN")],
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write.", show_default="RUN's name, with .zip")
    ] = None,
    without_utterances: Annotated[
        bool,
        typer.Option(
            "--without-utterances",
            help="Leave out what is of single utterances or speakers: manifest, folds, scores, speaker embeddings, "
            "findings of the protocol checks. Names of folds stay: with folds by speaker, speakers' names.",
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Make one file of a run, to keep or to hand on; predict reads it as it is, and unpack makes a folder of it.

    A fused run brings the runs along that it is made of. Paths of recordings, which are of this machine, stay out.
    """
    from pipelines import pack as pipeline
    from pipelines import show

    out = out or Path(f"{run.resolve().name}.zip")
    num_bytes = pipeline.pack(run, out, without_utterances, overwrite)
    typer.echo(f"Wrote {out} ({show.size(num_bytes)}).")


@app.command()
def unpack(
    file: Annotated[Path, typer.Argument(help="File that pack made.", metavar="FILE")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Run folder to make.", show_default="FILE's name, without .zip")
    ] = None,
) -> None:
    """Make a run folder of a file that pack made; every file in it is checked against its digest."""
    from pipelines import pack as pipeline

    out = out or Path(file.stem)
    pipeline.unpack(file, out)
    typer.echo(f"Wrote: {out}")


@app.command()
def tensorboard(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.", metavar="RUN...")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder to write, one below for each run.", show_default="RUN/tensorboard"),
    ] = None,
) -> None:
    """Write TensorBoard event files of runs: learning curves, test metrics, settings. Nothing is sent anywhere."""
    from pipelines import tensorboard as pipeline
    from pipelines.reporting.wording import distinct

    titles = distinct([str(run.resolve()) for run in runs])
    for title, run in zip(titles, runs, strict=True):
        typer.echo(f"Wrote: {pipeline.run(run, None if out is None else out / title)}")
