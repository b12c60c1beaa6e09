"""The command that runs an ablation: a base, what differs, and a table of results."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.options import PARTLY, AllowOpt, CacheOpt, DeviceOpt, ManifestArg, interruptible

app = typer.Typer()


@app.command()
@interruptible("What was finished is kept, and what was begun goes on: run the same command again.")
def ablate(
    spec: Annotated[str, typer.Argument(help="YAML file, or an ablation's name, such as demo.", metavar="SPEC")],
    manifest: ManifestArg,
    cache: CacheOpt = Path("cache"),
    out: Annotated[Path, typer.Option("--out", help="Folder for the runs and the results.")] = Path("runs/ablation"),
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change the base, KEY=VALUE, such as fit.steps=500; repeat for several."),
    ] = None,
    allow: AllowOpt = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="Processes at a time.", show_default="one a core, one on a GPU")
    ] = None,
    device: DeviceOpt = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace other runs in --out.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the runs and their cost, and run nothing.")] = False,
) -> None:
    """Run every combination of settings that a file asks for, and write one table of results.

    The file states a base, as train-heads takes it, and what differs: a grid, further runs, seeds, fusions.

    What is done is not done again: the same command goes on where it stopped.
    """
    values = {"allow": tuple(allow or ()), "device": device}
    raise typer.Exit(_run(spec, manifest, cache, out, settings or [], values, jobs, overwrite, dry_run))


def _run(
    spec: str, manifest: Path, cache: Path, out: Path, settings: list[str], values: dict[str, Any], jobs: int | None,
    overwrite: bool, dry_run: bool,
) -> int:  # fmt: skip
    from tqdm import tqdm

    from featcache.cache import open as open_cache
    from featcache.manifest import Manifest
    from pipelines import ablate as pipeline
    from pipelines import ablate_plan, ablate_results, ablate_show
    from pipelines.ablate_spec import read_ablation

    opened = open_cache(cache)
    ablation = read_ablation(spec, lambda streams: len(opened[streams[0]].spec.layers), settings, values)
    plan = ablate_plan.make_plan(ablation, Manifest.read(manifest), cache, out, jobs, overwrite)
    if dry_run:
        typer.echo(f"{ablate_show.names(plan)}\n")
    typer.echo(ablate_show.plan(plan))
    if dry_run:
        return PARTLY if plan.refused else 0
    done = pipeline.run(plan, partial(tqdm.write, file=sys.stderr))
    for name, sentence in done.failures.items():
        typer.echo(f"{name} failed: {sentence}", err=True)
    if not done.rows:
        return 1
    typer.echo(f"\n{ablate_results.summary(ablation, done.rows)}\n")
    typer.echo(
        f"Wrote {out / ablate_results.CSV} and {out / ablate_results.PARQUET}. The report: featcache report {out}"
    )
    return PARTLY if done.failures else 0
