"""Some of the cases in the ordinary tests, those that found something once among them; `make soak` has 10,000."""

from __future__ import annotations

from hashlib import sha256

import pytest

from tests.fuzz.judging import Case
from tests.fuzz.kinds import KINDS
from tests.fuzz.running import outcomes, through_the_command_line

FOUND = {
    (0, 1081): "a dotted key of 30,000 parts kept the parser of TOML busy for a minute",
    (1, 2073): "and 2,000 parts are a setting, or are refused, but no text",
    (1, 2714): "a file whose name is no text",
}
"""Seeds and numbers of cases that found something."""


def test_each_kind_is_read_rightly_or_refused() -> None:
    numbers = range(6 * len(KINDS))
    found = {outcome.number: outcome for outcome in outcomes(0, numbers)}
    assert list(found) == list(numbers)
    assert {number: outcome.finding for number, outcome in found.items() if outcome.finding} == {}
    assert sum(outcome.refused is not None for outcome in found.values()) > len(numbers) / 2


def test_what_was_found_once_is_found_no_more() -> None:
    for seed, number in FOUND:
        (outcome,) = outcomes(seed, [number])
        assert outcome.finding is None


def test_what_is_undamaged_is_read(tmp_path_factory: pytest.TempPathFactory) -> None:
    from tests.fuzz.kinds import put

    for kind in KINDS:
        for undamaged in kind.seeds():
            folder = tmp_path_factory.mktemp("undamaged")
            put(folder, undamaged)
            kind.check(folder, kind.read(folder))


def test_a_case_is_always_the_same() -> None:
    def digests() -> list[str]:
        return [sha256(repr(Case(0, number).files()).encode()).hexdigest() for number in range(3 * len(KINDS))]

    first = digests()
    for kind in KINDS:
        getattr(kind.seeds, "cache_clear", lambda: None)()
    assert digests() == first


@pytest.mark.slow  # starts a process for each
def test_the_command_line_refuses_them_too() -> None:
    chosen = {}
    for outcome in outcomes(0, range(4 * len(KINDS))):
        kind = Case(0, outcome.number).kind
        if outcome.refused is not None and kind.command is not None:
            chosen[kind.name] = outcome.number
    said = {number: through_the_command_line(Case(0, number)) for number in chosen.values()}
    assert len(said) >= len(KINDS) - 4
    assert not any(said.values()), said
