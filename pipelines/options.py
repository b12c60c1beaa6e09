"""Arguments and options that several commands share, and what a command does on Ctrl-C."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

PARTLY = 3
"""Exit code: done, but some utterances failed or are missing."""

ManifestArg = Annotated[Path, typer.Argument(help="Manifest: JSON Lines, one utterance a line.", metavar="MANIFEST")]
CacheArg = Annotated[Path, typer.Argument(help="Folder of the cache.", metavar="CACHE")]
CacheOpt = Annotated[Path, typer.Option("--cache", help="Folder of the cache.")]
PresetOpt = Annotated[str | None, typer.Option("--preset", help="A preset's name (featcache list) or a YAML file.")]
DeviceOpt = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.", show_default="auto")]
DevicesOpt = Annotated[
    str | None,
    typer.Option(
        "--device", help="auto, cpu, cuda or cuda:N; several, such as cuda:0,cuda:1, work at once.", show_default="auto"
    ),
]
AllowOpt = Annotated[list[str] | None, typer.Option("--allow", help="Let a kind of leak pass, by name.")]
FoldsOpt = Annotated[
    str | None,
    typer.Option(
        "--folds",
        help="session, speaker, split, column:NAME, random:K, stratified:70/20/10, within:KIND or a file.",
        show_default="session",
    ),
]
ValidationOpt = Annotated[
    float | None,
    typer.Option("--validation", help="Share of train that becomes validation, 0 to 1.", show_default="0.2"),
]
ValidationByOpt = Annotated[
    str | None, typer.Option("--validation-by", help="utterance or speaker.", show_default="utterance")
]
MissingOpt = Annotated[
    str | None,
    typer.Option("--missing", help="error, or drop utterances that a stream lacks.", show_default="error"),
]
LabelOpt = Annotated[str | None, typer.Option("--label", help="Column to learn.", show_default="label")]
DropUnlabelledOpt = Annotated[
    bool | None, typer.Option("--drop-unlabelled", help="Leave utterances without a label out.")
]
OverwriteOpt = Annotated[bool, typer.Option("--overwrite", help="Replace another run in --out.")]
WorkersOpt = Annotated[
    int | None, typer.Option("--workers", min=1, help="Processes that aligners use.", show_default="one for each core")
]


@contextmanager
def interruptible(text: str) -> Iterator[None]:
    """Say what Ctrl-C left behind; without it Typer exits in silence."""
    try:
        yield
    except KeyboardInterrupt:
        typer.secho(f"Interrupted. {text}", err=True)
        raise typer.Exit(130) from None
