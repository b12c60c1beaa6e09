"""Verify a cache, with a progress bar."""

import sys
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from featcache.verify import Problem, repair, verify


def run(cache: Path, full: bool, on_line: Callable[[str], None], mend: bool = False) -> list[Problem]:
    """Check every part of a cache, and tell what was found.

    Args:
        cache: the cache's folder.
        full: compare every byte with its checksum.
        on_line: called with each line to show.
        mend: drop what is broken.
    """
    with tqdm(desc="verify", unit=" parts", file=sys.stderr, leave=False) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        count, problems = verify(cache, full, advance)
    for problem in problems:
        on_line(f"{problem.where}: {problem.what}")
    checked = "every byte compared" if full else "shapes and types only"
    on_line(f"{count} utterances checked ({checked}), {len(problems)} problems.")
    for line in repair(cache, problems) if mend else ():
        on_line(f"Dropped {line}")
    return problems
