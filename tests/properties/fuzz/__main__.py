"""Runs many random pipelines: ``python -m tests.properties.fuzz --graphs 10000 --jobs 2 --resume``.

Every graph is a line of the state file, so that a run that was stopped goes on where it was. A graph with a fault is
made smaller and written as a script beside it, unless its kind is known already.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, TextIO

from tests.properties.fuzz.generate import COMPILED, make_recipe
from tests.properties.fuzz.judge import Report, judge
from tests.properties.fuzz.recipe import Recipe, standalone
from tests.properties.fuzz.shrink import shrink

VERDICTS = ("right", "refused", "wrong", "crashed")


def run_seed(seed: int, compiled: float) -> dict[str, Any]:
    """Judges the graph of a seed; returns what the state file keeps."""
    warnings.simplefilter("ignore")
    try:
        report = judge(make_recipe(seed, compiled))
    except Exception as error:
        report = Report(faults=[("fuzzer", f"{type(error).__name__}: {error}")])
    return {
        "seed": seed,
        "counts": dict(report.counts),
        "rules": dict(report.rules),
        "unclear": report.unclear[:3],
        "fault": report.signature if report.faults else "",
        "text": report.faults[0][1][:2000] if report.faults else "",
    }


def script_path(folder: Path, seed: int) -> Path:
    return folder / f"seed-{seed}.py"


def write_script(seed: int, compiled: float, folder: Path, seconds: float = 90) -> Path:
    """Shrinks the graph of a seed and writes it as a script."""
    recipe = make_recipe(seed, compiled)
    signature = judge(recipe).signature

    def has_fault(other: Recipe) -> bool:
        return judge(other).signature == signature

    small = shrink(recipe, has_fault, seconds)
    folder.mkdir(parents=True, exist_ok=True)
    path = script_path(folder, seed)
    path.write_text(standalone(small, f"Seed {seed}: {signature}"), encoding="utf-8")
    return path


class _Worker:
    """A process that is sent seeds, and answers each with a line; one that dies is started again."""

    def __init__(self, compiled: float) -> None:
        self._compiled = compiled
        self._process: subprocess.Popen[str] | None = None

    def ask(self, seed: int) -> dict[str, Any]:
        if self._process is None:
            command = [
                sys.executable,
                "-m",
                "tests.properties.fuzz",
                "--worker",
                f"--compiled={self._compiled}",
            ]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{seed}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        code = self._process.wait()
        self._process = None
        fault = f"crashed: the process ended with {code}"
        return {
            "seed": seed,
            "counts": {"crashed": 1},
            "rules": {},
            "unclear": [],
            "fault": fault,
            "text": "",
        }

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()


def _serve(compiled: float) -> None:
    """Answers seeds: what a worker does."""
    for line in sys.stdin:
        print(json.dumps(run_seed(int(line), compiled)), flush=True)


class _Run:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.state: Path = options.state
        self.entries: dict[int, dict[str, Any]] = {}
        self.shown = time.monotonic()
        if options.resume and self.state.exists():
            for line in self.state.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                self.entries[entry["seed"]] = entry
        self.known = {entry["fault"] for entry in self.entries.values()}

    def run(self) -> int:
        options = self.options
        wanted = range(options.seed, options.seed + options.graphs)
        todo = iter([seed for seed in wanted if seed not in self.entries])
        lock = threading.Lock()
        self.state.parent.mkdir(parents=True, exist_ok=True)
        with self.state.open("a" if options.resume else "w", encoding="utf-8") as out:

            def work() -> None:
                worker = _Worker(options.compiled)
                while True:
                    with lock:
                        seed = next(todo, None)
                    if seed is None:
                        return worker.close()
                    entry = worker.ask(seed)
                    with lock:
                        self._note(entry, out)

            threads = [threading.Thread(target=work) for _ in range(options.jobs)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        print(self.summary())
        return int(any(entry["fault"] or entry["unclear"] for entry in self.entries.values()))

    def _note(self, entry: dict[str, Any], out: TextIO) -> None:
        self.entries[entry["seed"]] = entry
        out.write(json.dumps(entry) + "\n")
        out.flush()
        if entry["fault"] and entry["fault"] not in self.known:
            self.known.add(entry["fault"])
            self._write_script(entry)
        if time.monotonic() - self.shown > 30:
            self.shown = time.monotonic()
            print(self.line(), flush=True)

    def _write_script(self, entry: dict[str, Any]) -> None:
        """In a process of its own: what crashed one may crash another."""
        command = [sys.executable, "-m", "tests.properties.fuzz", f"--script={entry['seed']}"]
        command += [f"--compiled={self.options.compiled}", f"--state={self.state}"]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        print(f"{entry['fault']}\n  {script_path(self.state.parent, entry['seed'])}", flush=True)

    def totals(self) -> Counter[str]:
        totals: Counter[str] = Counter(graphs=len(self.entries))
        for entry in self.entries.values():
            totals.update(entry["counts"])
            totals["unclear"] += len(entry["unclear"])
        totals["requests"] = sum(totals[verdict] for verdict in VERDICTS)
        return totals

    def line(self) -> str:
        totals = self.totals()
        return ", ".join(f"{totals[name]} {name}" for name in ("graphs", "requests", *VERDICTS, "unclear"))

    def summary(self) -> str:
        rules: Counter[str] = Counter()
        faults: dict[str, list[int]] = {}
        for seed, entry in sorted(self.entries.items()):
            rules.update(entry["rules"])
            for text in (entry["fault"], *entry["unclear"]):
                if text:
                    faults.setdefault(text[:400], []).append(seed)
        lines = [self.line(), *(f"  refused {count:6} {rule}" for rule, count in rules.most_common())]
        lines += [f"  {text}: seeds {seeds[:8]}" for text, seeds in faults.items()]
        return "\n".join(lines)


def main() -> int:
    """Reads the command line; returns 1 if anything was wrong, crashed or unclear."""
    parser = argparse.ArgumentParser(prog="python -m tests.properties.fuzz", description=__doc__)
    parser.add_argument("--graphs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--resume", action="store_true", help="go on with the state file")
    parser.add_argument("--state", type=Path, default=Path("build/fuzz/state.jsonl"))
    parser.add_argument("--compiled", type=float, default=COMPILED, help="share on the emulated device")
    parser.add_argument("--script", type=int, help="shrink this seed and print its script")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _serve(options.compiled)
        return 0
    with tempfile.TemporaryDirectory() as store:
        os.environ.setdefault("ORCHESTRATOR_STORE", store)
        if options.script is not None:
            path = write_script(options.script, options.compiled, options.state.parent)
            print(path.read_text(encoding="utf-8"))
            return 0
        return _Run(options).run()


if __name__ == "__main__":
    sys.exit(main())
