"""The command that compares runs."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders with a scores.csv.", metavar="RUN...")],
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            help="Compare each run with this one only: one of them by name, or another run's folder.",
            show_default="all pairs",
        ),
    ] = None,
    metric: Annotated[str, typer.Option("--metric", help="ua, wa, macro_f1 or weighted_f1.")] = "ua",
    draws: Annotated[
        int, typer.Option("--draws", min=1, help="Sets of speakers and swaps to draw; fewer swaps are all tried.")
    ] = 10_000,
    json: Annotated[Path | None, typer.Option("--json", help="Write all of it to this JSON file as well.")] = None,
) -> None:
    """Say whether runs over the same utterances differ by more than chance.

    Each run's metric comes with a 95 % interval that resamples whole speakers: where it may lie for other speakers
    of the same kind. Each pair comes with the difference, its interval, and two tests: a permutation test of the
    metric, which swaps the two runs for whole speakers, and McNemar's, of accuracy, which takes each utterance for
    another person's and so finds too much where speakers differ.

    The corrected p is the permutation test's, and allows for how many pairs there are (Holm): among all pairs where it
    is below 0.05, the chance that even one is a false alarm is below 5 %. Where one run is the question, compare with
    it alone by --reference: there is less to correct for.

    What not to conclude: a large p does not say that two runs are equally good, only that these speakers cannot tell
    them apart. A small one does not say that the difference is large, that it would come again with another seed or
    other training data (nothing here was trained anew), or on another corpus. And pairs that were compared elsewhere,
    or runs that were left out because they did worse, are not corrected for.
    """
    from featcache.files import write_json
    from pipelines import compare as pipeline

    compared = pipeline.run(runs, reference, metric, draws)
    typer.echo(pipeline.text(compared))
    if json is not None:
        write_json(json, pipeline.document(compared))
        typer.echo(f"Wrote {json}.")
