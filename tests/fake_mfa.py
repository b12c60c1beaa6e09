"""A small program that stands in for ``mfa`` and behaves as version 3.4.3 was seen to."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from featcache.aligners.mfa import Mfa
from featcache.mfa_corpus import QUALITY
from featcache.settings import build

FAKE = """#!{python} -SE
import csv, json, os, pathlib, re, subprocess, sys, time
how = json.loads({how!r})
record = pathlib.Path({record!r})
root = pathlib.Path(os.environ["MFA_ROOT_DIR"])
(root / "global_config.yaml").write_text("clean: false")
if sys.argv[1] == "version":
    with record.open("a") as file:
        file.write("version\\n")
    if how.get("no_kalpy"):
        print("Traceback (most recent call last):", file=sys.stderr)
        sys.exit("ModuleNotFoundError: No module named '_kalpy'")
    print(how.get("version", "3.4.3"))
    sys.exit()
corpus, dictionary, model, aligned = [pathlib.Path(part) for part in sys.argv[2:6]]
with record.open("a") as file:
    file.write(json.dumps({{
        "argv": sys.argv[1:], "root": str(root), "pythonpath": os.environ.get("PYTHONPATH"),
        "path": os.environ["PATH"], "before": sorted(path.name for path in root.parent.iterdir()),
        "files": {{str(path.relative_to(corpus)): path.read_text() if path.suffix == ".lab" else path.stat().st_size
                  for path in sorted(corpus.rglob("*.*"))}},
    }}) + "\\n")
if how.get("keep_corpus"):
    import shutil
    shutil.copytree(corpus, how["keep_corpus"])
if how.get("refuse"):
    print("\\u256d\\u2500 Error \\u2500\\u256e\\n\\u2502 Could not find a model named x \\u2502", file=sys.stderr)
    sys.exit(2)
work = root / "corpus"
(work / "log").mkdir(parents=True)
(work / "corpus.log").write_text("2026 - mfa - DEBUG - Beginning run for corpus\\n")
(work / "log" / "align.1.log").write_text("kaldi\\n")
print(" \\x1b[32mINFO    \\x1b[0m Setting up corpus information...", file=sys.stderr)
print("\\r  50% \\u2501\\u2501\\u2578\\u2501 1/2\\r 100% \\u2501\\u2501\\u2501 2/2  [ 0:00:02 < 0:00:00 ]", flush=True)
with (work / "corpus.log").open("a") as file:
    file.write("2026 - mfa - DEBUG - Aligned 1, errors on 1\\n")
if how.get("child"):
    child = subprocess.Popen(["sleep", "600"])
    pathlib.Path(how["child"]).write_text(f"{{os.getpid()}} {{child.pid}}")
    if how.get("leave"):
        sys.exit(1)
    time.sleep(600)
if how.get("traceback"):
    print("Traceback (most recent call last):\\nsoundfile.LibsndfileError: Error opening x.wav", file=sys.stderr)
    sys.exit(1)
if how.get("none"):
    print("NoAlignmentsError:\\n\\nThere were no successful alignments for 2 utterances.", file=sys.stderr)
    sys.exit(1)
said = {{line.split()[0]: line.split()[1:] for line in dictionary.read_text().splitlines() if line.strip()}}
guess = "--g2p_model_path" in sys.argv
rows = []
aligned.mkdir()
for lab in sorted(corpus.rglob("*.lab")):
    text = lab.read_text()
    name = lab.relative_to(corpus).with_suffix(".TextGrid")
    if "unspoken" in text or "dropped" in text:
        if "unspoken" in text:
            rows.append([lab.stem, 0, 1, lab.parent.name] + [""] * 6)
        continue
    rows.append([lab.stem, 0, 1, lab.parent.name, -48.7, -52.3, 10.75, 7, 3.66, ""])
    (aligned / name).parent.mkdir(exist_ok=True)
    plain = " ".join(re.findall("[a-z']+", text.lower()))
    if plain in how.get("real", {{}}):
        (aligned / name).write_text(pathlib.Path(how["real"][plain]).read_text())
        continue
    words, phones, now = [], [], 0.0
    for token in re.findall(r"\\[.*?\\]|[\\w']+", text.lower()):
        word = token
        if token.startswith("["):
            word = "[laughter]" if token == "[laughter]" else "[bracketed]"
        pronounced = said.get(word) or (list(word.upper()) if guess and word[0] != "[" else ["spn"])
        first = now
        for phone in pronounced:
            phones.append((now, round(now + 0.05, 2), phone))
            now = round(now + 0.05, 2)
        words.append((first, now, word))
        phones.append((now, round(now + 0.01, 2), ""))
        now = round(now + 0.01, 2)
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "0", str(now), "<exists>", "2"]
    for tier, entries in (("words", words), ("phones", phones)):
        lines += ['"IntervalTier"', '"' + tier + '"', "0", str(now), str(len(entries))]
        lines += [str(part) for a, b, label in entries for part in (a, b, '"' + label + '"')]
    (aligned / name).write_text("\\n".join(lines) + "\\n")
if not how.get("no_analysis"):
    with (aligned / "alignment_analysis.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow("file begin end speaker {quality}".split())
        writer.writerows(rows)
import shutil
time.sleep(0.3)  # a real run lasts long enough for its log to be seen
shutil.rmtree(work)
print(" INFO     Done! Everything took 23.064 seconds", file=sys.stderr)
"""
DICTIONARY = "hello\tHH AH0 L OW1\nworld\tW ER1 L D\ndog\tD AO1 G\n's\tZ\n"


class Fake:
    """A stand-in for ``mfa`` in a folder of its own, with models, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record = folder / "record.jsonl"
        self.program = folder / "bin" / "mfa"
        self.program.parent.mkdir(parents=True)
        self.dictionary = folder / "english.dict"
        self.dictionary.write_text(DICTIONARY)
        self.model = folder / "english.zip"
        self.model.write_bytes(b"model")
        self.behave()

    def behave(self, **how: Any) -> None:
        script = FAKE.format(
            python=sys.executable, how=json.dumps(how), record=str(self.record), quality=" ".join(QUALITY)
        )
        self.program.write_text(script)
        self.program.chmod(0o755)
        stamp = time.time_ns()  # versions are remembered by modification time
        os.utime(self.program, ns=(stamp, stamp))

    def aligner(self, **settings: Any) -> Mfa:
        paths = {"acoustic_model": self.model, "dictionary": self.dictionary, "program": self.program}
        return build(Mfa, {name: str(path) for name, path in paths.items()} | settings, "aligner mfa")

    def asked(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.record.read_text().splitlines() if line != "version"]
