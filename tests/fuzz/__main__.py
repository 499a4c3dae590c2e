"""`python -m tests.fuzz`: the long run, with a report; exit code 1 where anything was found."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from random import Random

from tests.fuzz.judging import Case, Outcome
from tests.fuzz.kinds import KINDS
from tests.fuzz.running import outcomes, through_the_command_line

_EVERY = 500


def main() -> int:
    """Judges the cases that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, metavar="N", help="how many are read in process")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the cases")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first case")
    parser.add_argument("--only", type=int, metavar="N", help="a single case, by its number")
    parser.add_argument("--kind", metavar="NAME", help="cases of one kind only")
    parser.add_argument(
        "--commands", type=int, default=100, metavar="N", help="how many go through the command line too"
    )
    asked = parser.parse_args()
    numbers = [asked.only] if asked.only is not None else list(range(asked.first, asked.first + asked.cases))
    if asked.kind is not None:
        numbers = [number for number in numbers if Case(asked.seed, number).kind.name == asked.kind]
    found: list[Outcome] = []
    for outcome in outcomes(asked.seed, numbers):
        found.append(outcome)
        if outcome.finding:
            _tell(asked.seed, outcome.number, outcome.finding)
        if len(found) % _EVERY == 0:
            sys.stderr.write(f"{len(found)} of {len(numbers)} cases\n")
    findings = sum(outcome.finding is not None for outcome in found)
    _report(asked.seed, found)
    if asked.only is not None:
        _say(str(found[0]))
    spoken = _chosen(asked.seed, found, asked.commands)
    wrong = 0
    for number in spoken:
        said = through_the_command_line(Case(asked.seed, number))
        if said is not None:
            wrong += 1
            _tell(asked.seed, number, f"through the command line: {said}")
    _say(f"{len(spoken)} of them through the command line: {len(spoken) - wrong} ended with exit code 2 or 3")
    _say(f"{findings + wrong} findings")
    return int(findings + wrong > 0)


def _chosen(seed: int, found: list[Outcome], count: int) -> list[int]:
    """Refused cases, of every kind that a command reads as many."""
    refused: dict[str, list[int]] = {}
    for outcome in found:
        kind = Case(seed, outcome.number).kind
        if outcome.refused is not None and kind.command is not None:
            refused.setdefault(kind.name, []).append(outcome.number)
    rng = Random(seed)
    for numbers in refused.values():
        rng.shuffle(numbers)
    ranks = sorted((rank, number) for numbers in refused.values() for rank, number in enumerate(numbers))
    return [number for _, number in ranks[:count]]


def _report(seed: int, found: list[Outcome]) -> None:
    cases = [(Case(seed, outcome.number), outcome) for outcome in found]
    _say(f"seed {seed}: {len(found)} cases, {sum(case.aware for case, _ in cases)} of them structure-aware")
    _say(_line(("kind", "cases", "aware", "read", "refused", "findings", "slowest s", "growth MiB")))
    for kind in KINDS:
        own = [(case, outcome) for case, outcome in cases if case.kind is kind]
        if own:
            counts = Counter("refused" if outcome.refused is not None else "read" for _, outcome in own)
            wrong = sum(outcome.finding is not None for _, outcome in own)
            slowest = max(outcome.seconds for _, outcome in own)
            growth = max(outcome.growth for _, outcome in own) / 2**20
            aware = sum(case.aware for case, _ in own)
            counted = len(own), aware, counts["read"], counts["refused"], wrong
            _say(_line((kind.name, *counted, f"{slowest:.2f}", f"{growth:.0f}")))
    longest, largest = max(found, key=lambda one: one.seconds), max(found, key=lambda one: one.growth)
    _say(f"slowest: case {longest.number}, {longest.seconds:.2f} s of CPU time")
    _say(f"largest growth: case {largest.number}, {largest.growth / 2**20:.0f} MiB")


def _line(cells: tuple[object, ...]) -> str:
    return f"{cells[0]:<16}" + "".join(f"{cell:>12}" for cell in cells[1:])


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _tell(seed: int, number: int, finding: str) -> None:
    case = Case(seed, number)
    way = "a lie" if case.aware else "an accident"
    _say(f"FINDING, case {number} ({case.kind.name}, {way}): {finding}")


if __name__ == "__main__":
    sys.exit(main())
