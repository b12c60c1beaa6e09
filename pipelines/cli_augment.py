"""The command that writes augmented copies."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.options import PARTLY, ManifestArg, interruptible

app = typer.Typer()


@app.command()
@interruptible("Copies that are written stay; run the same command to go on.")
def augment(
    manifest: ManifestArg,
    out: Annotated[Path, typer.Argument(help="Folder to write: audio/ and manifest.jsonl.", metavar="OUT")],
    recipe: Annotated[
        str,
        typer.Option("--recipe", help="noise, pitch, stretch, shift, with commas between; or a YAML file of kinds."),
    ] = "noise,pitch,stretch,shift",
    copies: Annotated[int, typer.Option("--copies", min=1, help="Copies of each kind, for each utterance.")] = 1,
    seed: Annotated[int, typer.Option("--seed", help="Of what is drawn; the same gives the same files.")] = 0,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes.", show_default="one for each core")
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace a manifest in OUT that lists copies which the new one does not."),
    ] = False,
) -> None:
    """Write augmented copies of a manifest's recordings, and a manifest that lists both.

    Copies are utterances of their own, called ID~noise-1 and so on: extract them, and train, with OUT/manifest.jsonl.
    Folds are made of the originals; copies are learned from where their original is, and are never in validation or
    test.

    Amounts are drawn for each copy: noise at 10 to 30 dB below the speech, pitch up to 2 semitones lower or higher,
    stretch to 0.8 to 1.25 times the speed, shift by up to 0.25 s to either side, around the end. Others, and several
    effects in one copy, by a YAML file:

        far: {pitch: [-4, 4], noise: [0, 10]}

    A manifest that is in OUT already is replaced where the new one lists all that it does, as with more kinds or more
    copies; else by --overwrite alone. Files of copies are never removed.

    The column "augmentation" says what was drawn. Exit code 3: some copies cannot be made; the others are done.
    """
    from featcache.augmentation import read_recipe
    from featcache.manifest import Manifest
    from pipelines import augment as pipeline
    from pipelines import show

    wanted, utterances = read_recipe(recipe), Manifest.read(manifest)
    with show.bar("augment", " utt") as progress:
        done = pipeline.run(utterances, out, wanted, copies, seed, workers, progress, overwrite)
    for name, reason in done.failures.items():
        typer.echo(f"{name}: {reason}", err=True)
    if done.num_strangers:
        typer.echo(
            f"{out / pipeline.AUDIO} holds {done.num_strangers} further FLAC files, which its manifest does not name."
        )
    if done.num_copies == done.num_brought:
        typer.echo("Nothing could be augmented, and no manifest was written.", err=True)
        raise typer.Exit(1)
    brought = f", {done.num_brought} of them in {manifest} already" if done.num_brought else ""
    typer.echo(f"{done.num_originals} originals, {done.num_copies} copies{brought}, {done.num_made} of them made now.")
    typer.echo(f"Wrote {out / pipeline.MANIFEST}.")
    raise typer.Exit(PARTLY if done.failures else 0)
