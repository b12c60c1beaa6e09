"""The command that reproduces a paper: every row of its tables, over a cache."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.options import PARTLY, AllowOpt, CacheOpt, DeviceOpt, ManifestArg, interruptible

app = typer.Typer()


@app.command()
@interruptible("What was finished is kept, and what was begun goes on: run the same command again.")
def reproduce(
    paper: Annotated[
        str,
        typer.Argument(help="makiuchi2021, morais2022, ghosh2023, padi2022, zhou, or a YAML file.", metavar="PAPER"),
    ],
    manifest: ManifestArg,
    cache: CacheOpt = Path("cache"),
    out: Annotated[Path, typer.Option("--out", help="Folder for the runs and the tables.")] = Path("runs/paper"),
    demo: Annotated[bool, typer.Option("--demo", help="Run small forms that need no download and no GPU.")] = False,
    laptop: Annotated[
        bool, typer.Option("--laptop", help="Run the forms with real weights that need no download and no GPU.")
    ] = False,
    extract: Annotated[
        bool, typer.Option("--extract", help="Extract first what the rows read and the cache lacks.")
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs", min=1, help="Trainings at a time, each in a process.", show_default="one a core; one on a GPU"
        ),
    ] = None,
    folds: Annotated[
        str | None,
        typer.Option(
            "--folds",
            help="session, speaker, split, column:NAME, random:K, stratified:70/20/10, within:KIND or a file.",
            show_default="the paper's",
        ),
    ] = None,
    allow: AllowOpt = None,
    stream: Annotated[
        list[str] | None,
        typer.Option(
            "--stream", help="Full name of a stream to take where several fit a row, or none does; repeatable."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="KEY=VALUE, such as fit.steps=20000, of every training (every head must have it); of probes the seed.",
        ),
    ] = None,
    missing: Annotated[
        str, typer.Option("--missing", help="error, or drop utterances that a stream lacks, from every row.")
    ] = "error",
    drop_unlabelled: Annotated[
        bool, typer.Option("--drop-unlabelled", help="Leave utterances without a label out of every row.")
    ] = False,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave rows out whose streams the cache lacks.")
    ] = False,
    device: DeviceOpt = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace other runs in --out.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be run, and run nothing.")] = False,
) -> None:
    """Run every row of a paper's tables over a cache, and write the tables, the paper's numbers beside ours.

    What is done is not done again: the same command goes on where it stopped.
    """
    values = {
        "demo": demo, "laptop": laptop, "jobs": jobs, "folds": folds, "allow": tuple(allow or ()),
        "streams": tuple(stream or ()), "settings": tuple(settings or ()), "missing": missing,
        "drop_unlabelled": drop_unlabelled, "skip_missing": skip_missing, "device": device or "auto",
        "overwrite": overwrite,
    }  # fmt: skip
    raise typer.Exit(_run(paper, manifest, cache, out, values, extract, dry_run))


def _run(
    paper: str, manifest: Path, cache: Path, out: Path, values: dict[str, Any], extract: bool, dry_run: bool
) -> int:
    from tqdm import tqdm

    from featcache.errors import CacheError
    from featcache.manifest import Manifest
    from featcache.settings import build
    from pipelines import reproduce as pipeline
    from pipelines import reproduce_show
    from pipelines.paper import read_paper
    from pipelines.reporting import tables
    from pipelines.reproduce_plan import make_plan
    from pipelines.reproduce_rows import Options

    options = build(Options, values, "reproduce")
    utterances, read = Manifest.read(manifest), read_paper(paper)
    if extract and dry_run:
        typer.echo(f"{reproduce_show.describe_extraction(read, options)}\n")
        if not cache.is_dir():
            typer.echo(f"There is no cache {str(cache)!r} yet; which rows it will do for is known when there is.")
            return 0
    elif not extract and not cache.is_dir():
        raise CacheError(f"There is no cache {str(cache)!r}. Add --extract: it makes what the rows read.")
    elif extract:
        pipeline.extract(read, utterances, cache, options, partial(tqdm.write, file=sys.stderr))
    plan = make_plan(read, utterances, cache, out, options)
    if dry_run:
        typer.echo(reproduce_show.describe(plan))
        return PARTLY if plan.missing and not (options.skip_missing or extract) else 0
    done = pipeline.run(plan, options, partial(tqdm.write, file=sys.stderr))
    typer.echo(tables.text(done.document))
    typer.echo(f"Wrote {out / 'tables.md'}, {out / 'tables.csv'} and {out / 'tables.html'}.")
    for key, sentence in done.failures.items():
        typer.echo(f"{key} failed: {sentence}", err=True)
    return PARTLY if done.failures else 0
