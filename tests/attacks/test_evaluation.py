"""Sweeps over methods, threats, levels and draws, and what is reported of them."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rapa_cli.analysis.evaluation import wilson
from rapa_cli.attacks import evaluation
from rapa_cli.attacks.evaluation import Evaluation, Level, attack, attacks_named, attacks_of, check_fit
from rapa_cli.attacks.fgsm import perturb
from rapa_cli.attacks.intervals import gap_closed
from rapa_cli.attacks.judging import judge
from rapa_cli.attacks.oracle import Oracle
from rapa_cli.attacks.records import Origin, Records, Settings
from rapa_cli.attacks.results import Result, results
from rapa_cli.attacks.sanity import check
from rapa_cli.attacks.snr import eps_for_snr, snr_db
from rapa_cli.attacks.threat import parse_threat
from rapa_cli.errors import ConfigError
from rapa_cli.keyed import KeyedLayer, draws
from rapa_cli.layers.network import Network
from rapa_cli.philox import Purpose, uniform
from tests.attacks.toy import gradient_sign
from tests.training import tiny

TEST = tiny.data_set(test=24).test
LEVELS = (Level(snr_db=15), Level(snr_db=5))


def settings(networks: int = 1, **changes: Any) -> Settings:
    origins = tuple(Origin(path=f"{number}", sha256="", baseline=number == 1) for number in range(networks))
    values: dict[str, Any] = {
        "networks": origins,
        "data": "tiny",
        "data_sha256": "",
        "images": len(TEST),
        "levels": LEVELS,
        "methods": ("fgsm",),
        "threats": ("fresh-draw",),
        "seed": 3,
    }
    return Settings(**{**values, **changes})


def evaluated(*networks: Network, **changes: Any) -> tuple[Records, list[Result]]:
    records = Records(settings(len(networks), **changes), TEST.labels)
    run = Evaluation(networks, TEST.images, TEST.labels, records)
    run.attack()
    return records, results(records, attacks_named(run.attacks))


@functools.cache
def network(seed: int = 5) -> Network:
    """A network with tiles that has learned something."""
    model = tiny.network(seed=seed, scheme="random", tiles=(16, 4))
    train = tiny.data_set().train
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(8):
        with draws(model, images=torch.arange(len(train)), seed=seed, draw=step, stream="train"):
            loss = F.cross_entropy(model(tiny.pixels(train)), train.labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    model.zero_grad()
    return model


def classes(model: Network, x: Tensor, draw: int) -> Tensor:
    with torch.no_grad(), draws(model, images=torch.arange(len(x)), seed=3, draw=draw, stream="attack"):
        found: Tensor = model(x).argmax(1)
    return found


def test_several_scoring_draws_by_hand() -> None:
    model = network()
    records, (result,) = evaluated(model, draws=3)
    x, y, ids = tiny.pixels(TEST), TEST.labels, torch.arange(24)
    with draws(model, images=ids, seed=3, draw=0, stream="attack"):
        sign = gradient_sign(model, x, y)
    for place, (level, point) in enumerate(zip(LEVELS, result.points, strict=True)):
        assert level.snr_db is not None
        eps = eps_for_snr(x, level.snr_db)
        noisy = perturb(x, sign, eps)
        clean = torch.stack([classes(model, x, 1 + draw) == y for draw in range(3)], 1)
        right = torch.stack([classes(model, noisy, 1 + draw) == y for draw in range(3)], 1)
        shares = [100 * int((right & clean)[:, n].sum()) / int(clean[:, n].sum()) for n in range(3)]
        assert point.accuracies == pytest.approx(shares)
        assert point.accuracy == pytest.approx(sum(shares) / 3)
        assert point.accuracy_all == pytest.approx(100 * float(right.double().mean()))
        assert point.ci95[0] <= point.accuracy <= point.ci95[1]
        assert torch.equal(records.tensors[f"results/0/{place}/eps"][:, 0], eps)
        assert torch.equal(records.tensors[f"results/0/{place}/snr_db"][:, 0], snr_db(x, noisy))
        assert records.tensors[f"results/0/{place}/predicted"].shape == (24, 3)
    assert result.accuracy_clean == pytest.approx(100 * float(clean.double().mean()))


def test_one_gradient_serves_all_levels_and_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    gradient = Oracle.gradient

    def noted(self: Oracle, x: Tensor, labels: Tensor, ids: Tensor, numbers: tuple[int, ...], **rest: Any) -> Any:
        asked.append(tuple(numbers))
        return gradient(self, x, labels, ids, numbers, **rest)

    monkeypatch.setattr(Oracle, "gradient", noted)
    evaluated(network(), levels=tuple(Level(eps=n / 255) for n in range(12)), draws=2)
    assert asked == [(0,)]
    asked.clear()
    evaluated(network(), threats=("same-draw",), draws=2)
    assert asked == [(1,), (2,)], "an attacker who knows the draw that scores needs a gradient for each"


def test_one_attack_each() -> None:
    found = attacks_of(["fgsm", "noise", "eotpgd"], ["fresh-draw", "eot 16", "noise"])
    assert [str(one) for one in found] == [
        "fgsm, fresh-draw",
        "fgsm, eot 16",
        "fgsm, noise",
        "noise",
        "eotpgd, eot 16",
        "eotpgd, noise",
    ]
    both = attacks_of(["pgd", "torchattacks.PGD", "Square", "torchattacks.square"], ["fresh-draw"])
    assert [one.method.name for one in both] == ["pgd", "torchattacks.pgd", "square", "torchattacks.square"]
    assert attacks_of(["mifgsm", "MIFGSM"], ["eot 2"])[1:] == []
    with pytest.raises(ConfigError):
        attacks_of(["fgsmm"], ["fresh-draw"])


@pytest.mark.parametrize("method", ["square", "apgd-ce", "cw"])
def test_methods_that_ask_questions_cannot_go_without_answers(method: str) -> None:
    with pytest.raises(ConfigError, match=f"--threat noise: {method} asks the network"):
        attacks_of(["fgsm", method], ["fresh-draw", "noise"])
    assert len(attacks_of(["fgsm", "pgd", "noise"], ["noise"])) == 3


def test_methods_that_do_not_fit_a_network() -> None:
    for method, shape, classes, message in (
        ("apgd-dlr", (3, 8, 8), 2, "needs 3 classes, the network has 2"),
        ("autoattack", (3, 8, 8), 3, "needs 4 classes"),
        ("tifgsm", (1, 8, 8), 4, "needs images of 3 channels, got 1"),
        ("square-l2", (1, 12, 12), 4, "cannot lay its squares out in images of 12 x 12"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_fit(attacks_of(["fgsm", method], ["fresh-draw"]), shape, classes)
        check_fit(attacks_of(["fgsm", method], ["fresh-draw"]), (3, 8, 8), 4)


def test_judging_by_hand() -> None:
    model = network()
    records, (result,) = evaluated(model, levels=LEVELS[1:], judge_draws=4, votes=4)
    x, y, ids = tiny.pixels(TEST), TEST.labels, torch.arange(24)
    with draws(model, images=ids, seed=3, draw=0, stream="attack"):
        sign = gradient_sign(model, x, y)
    noisy = perturb(x, sign, eps_for_snr(x, 5))
    judged = torch.stack([classes(model, noisy, 2**24 + draw) for draw in range(4)], 1)
    clean = torch.stack([classes(model, x, 2**24 + draw) for draw in range(4)], 1)
    assert torch.equal(records.tensors["results/0/0/judged"][:, 0].long(), judged)
    found = result.points[0].judged
    assert found is not None
    right, counted = judged == y[:, None], clean == y[:, None]
    shares = (right & counted).sum(0) / counted.sum(0)
    assert found.accuracy == pytest.approx(100 * float(shares.mean()))
    assert found.accuracy_all == pytest.approx(100 * float(right.double().mean()))
    assert found.always_all == pytest.approx(100 * float(right.all(1).double().mean()))
    assert found.always_all <= found.accuracy_all
    always, every = right.all(1), counted.all(1)
    assert found.always_ci95 == wilson(int((always & every).sum()), int(every.sum()))
    assert (found.draws, found.known) == (4, 0)
    seen, known = classes(model, noisy, 0) == y, classes(model, x, 0) == y
    assert found.believed_all == pytest.approx(100 * float(seen.double().mean()))
    assert found.believed == pytest.approx(100 * int((seen & known).sum()) / int(known.sum()))
    noise = evaluated(model, methods=("noise",), judge_draws=1, votes=1)[1][0].points[0].judged
    assert noise is not None
    assert math.isnan(noise.believed)


def test_a_vote_aware_attack_is_judged_on_draws_that_it_does_not_know() -> None:
    model, (x, y, ids) = network(), (tiny.pixels(TEST), TEST.labels, torch.arange(24))
    records, (result,) = evaluated(model, threats=("vote-aware 2",), levels=LEVELS[1:], judge_draws=5, votes=2)
    found = result.points[0].judged
    assert found is not None
    assert (found.draws, found.known) == (3, 2)
    oracle = Oracle(model, 3)
    sign = oracle.gradient(x, y, ids, (2**24, 2**24 + 1), loss=parse_threat("vote-aware").loss)[1].sign()
    noisy = perturb(x, sign, eps_for_snr(x, 5))
    fresh = torch.stack([classes(model, noisy, 2**24 + draw) == y for draw in (2, 3, 4)], 1)
    clean = torch.stack([classes(model, x, 2**24 + draw) == y for draw in (2, 3, 4)], 1)
    assert found.accuracy_all == pytest.approx(100 * float(fresh.double().mean()))
    assert found.accuracy == pytest.approx(100 * float(((fresh & clean).sum(0) / clean.sum(0)).mean()))
    assert found.always_all == pytest.approx(100 * float(fresh.all(1).double().mean()))
    assert found.vote_all == pytest.approx(100 * float((judge(oracle, noisy, y, ids, 2).vote == y).double().mean()))
    assert records.tensors["results/0/0/believed"].shape == (24, 1, 1), "its draws answer as one"
    with pytest.raises(ConfigError, match="--judge-draws 3: vote-aware 2 knows the first 2"):
        attack(model, TEST.images, y, LEVELS, threat="vote-aware 2", judge_draws=3)


def test_an_attack_of_no_strength_believes_what_is_true() -> None:
    threats = ("fresh-draw", "same-draw", "eot 4", "vote-aware 4")
    found = evaluated(network(), threats=threats, levels=(Level(eps=0),), judge_draws=8, votes=4)[1]
    for result in found:
        judged = result.points[0].judged
        assert judged is not None
        assert (judged.believed, judged.accuracy, judged.always) == (100, 100, 100), result.attack
        assert judged.believed_all < 100, "some are wrong without noise"


def test_each_judging_draw_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    logits = Oracle.logits

    def noted(self: Oracle, x: Tensor, ids: Tensor, draw: int, **rest: Any) -> Tensor:
        asked.append(draw)
        return logits(self, x, ids, draw, **rest)

    model = network()
    whole = evaluated(model, levels=LEVELS[1:], judge_draws=3, votes=3)[0].tensors
    monkeypatch.setattr(Oracle, "logits", noted)
    records, _ = evaluated(model, levels=LEVELS[1:], judge_draws=5, votes=3)
    # Once for the clean images and once for those under attack; the first also to see whether draws are alike.
    assert [asked.count(2**24 + draw) for draw in range(5)] == [3, 2, 2, 2, 2]
    assert torch.equal(records.tensors["results/0/0/vote"], whole["results/0/0/vote"])


class Patterned(KeyedLayer):
    """Weighs pixels by a pattern of the draw, and so says the same of black images in all draws."""

    def __init__(self) -> None:
        super().__init__()
        self.place = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        chance = uniform(self.draw_for(len(x), x.device).words(Purpose.ASSIGNMENT, count=3 * x[0].numel()))
        return torch.einsum("bkd,bd->bk", (chance - 0.5).view(len(x), 3, -1), x.flatten(1)) + self.place


def test_black_images_do_not_make_a_network_deterministic() -> None:
    images = TEST.images.clone()
    images[:8] = 0
    records = Records(settings(judge_draws=3, votes=3, draws=2), TEST.labels)
    network = Patterned()
    Evaluation([network], images, TEST.labels, records).attack()
    judged = records.tensors["networks/0/judged"]
    assert (judged[:8] == judged[:8, :1]).all()
    assert (judged[8:] != judged[8:, :1]).any()
    says = {line.check: line.says for line in check([], [], network, images, TEST.labels, records.settings)}
    assert says["gradients of draws agree, or are averaged"] != "all draws are the same"


def test_a_network_without_random_choices_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    logits = Oracle.logits

    def noted(self: Oracle, x: Tensor, ids: Tensor, draw: int, **rest: Any) -> Tensor:
        calls.append(draw)
        return logits(self, x, ids, draw, **rest)

    monkeypatch.setattr(Oracle, "logits", noted)
    _, (result,) = evaluated(tiny.network(scheme="none"), draws=3, judge_draws=5, votes=5)
    # Three to see that draws are alike, three for the clean images (scored, judged, believed), three for each level.
    assert len(calls) == 3 + 3 + 2 * 3
    judged = result.points[1].judged
    assert judged is not None
    assert result.points[1].accuracies == (result.points[1].accuracy,) * 3
    assert (judged.accuracy, judged.vote, judged.always) == (result.points[1].accuracy,) * 3


@pytest.mark.parametrize("size", [1, 7])
def test_batches_change_nothing(size: int) -> None:
    changes: dict[str, Any] = {"methods": ("fgsm", "pgd"), "threats": ("fresh-draw", "eot 2"), "levels": LEVELS[1:]}
    whole, split = (evaluated(network(), batch_size=number, **changes)[0] for number in (100, size))
    assert whole.tensors.keys() == split.tensors.keys()
    for name, tensor in whole.tensors.items():
        if tensor.is_floating_point():
            assert torch.allclose(tensor, split.tensors[name], rtol=0.02), name
        else:
            assert torch.equal(tensor, split.tensors[name]), name


def test_exact_ratios() -> None:
    for method in ("fgsm", "pgd"):
        records, (result,) = evaluated(network(), methods=(method,), exact_snr=True)
        for point, level in zip(result.points, LEVELS, strict=True):
            assert point.snr_db == pytest.approx(level.snr_db, abs=1e-2)
            assert point.missed == {"black": 0, "saturated": 0, "unmoved": 0}
        assert not records.tensors["results/0/0/outcome"].any()


def test_the_baseline() -> None:
    _, (first, second) = evaluated(network(), network(seed=6), draws=2)
    assert (first.network, second.network) == (0, 1)
    for mine, theirs in zip(first.points, second.points, strict=True):
        assert mine.gap is not None
        assert theirs.gap is None
        assert mine.gap.closed == pytest.approx(gap_closed(mine.accuracy, theirs.accuracy), nan_ok=True)
        if math.isfinite(mine.gap.closed):
            assert mine.gap.ci95[0] <= mine.gap.closed <= mine.gap.ci95[1]
    strong = (Level(eps=0.5),)
    same = evaluated(network(seed=7), network(seed=7), draws=2, levels=strong)[1][0].points[0].gap
    assert same is not None
    assert same.closed == 0
    assert same.ci95 == (0, 0), "pairs of equal answers leave no doubt"


def test_transfer_is_made_on_the_source() -> None:
    model, other = network(), tiny.network(seed=9, scheme="none")
    records = Records(settings(threats=("transfer",), levels=LEVELS[1:]), TEST.labels)
    Evaluation([model], TEST.images, TEST.labels, records, source=other).attack()
    x, y = tiny.pixels(TEST), TEST.labels
    noisy = perturb(x, gradient_sign(other, x, y), eps_for_snr(x, 5))
    assert torch.equal(records.tensors["results/0/0/predicted"][:, 0].long(), classes(model, noisy, 1))
    reduced, _ = evaluated(model, threats=("transfer",), levels=LEVELS[1:])
    assert reduced.done("results/0/0") == 24


def test_standardised_ratios() -> None:
    _, (raw,) = evaluated(network())
    _, (standardized,) = evaluated(network(), snr_space="standardized")
    for first, second in zip(raw.points, standardized.points, strict=True):
        assert second.eps != first.eps
        assert second.snr_db == pytest.approx(second.level.snr_db, abs=3)


def test_costs_add_up() -> None:
    chosen = settings(2, methods=("fgsm", "pgd"), judge_draws=2, votes=2)
    records = Records(chosen, TEST.labels)
    costs: list[int] = []
    parts: list[str] = []
    run = Evaluation(
        [network(), network(seed=6)], TEST.images, TEST.labels, records, on_cost=costs.append, on_part=parts.append
    )
    total = run.cost
    run.attack()
    assert sum(costs) == total
    assert run.cost == 0
    assert parts[:4] == [
        "network 1 of 2: without noise",
        "network 1 of 2: fgsm, fresh-draw, all levels",
        "network 1 of 2: pgd, fresh-draw, level 1 of 2",
        "network 1 of 2: pgd, fresh-draw, level 2 of 2",
    ]


def test_the_picture_is_of_the_image_that_was_scored() -> None:
    records = Records(settings(methods=("pgd",)), TEST.labels)
    run = Evaluation([network()], TEST.images, TEST.labels, records)
    run.attack()
    clean, found = run.pictures(0, 0, 7)
    assert torch.equal(clean, tiny.pixels(TEST)[7])
    for level, (image, seen, ratio) in enumerate(found):
        assert ratio == pytest.approx(float(records.tensors[f"results/0/{level}/snr_db"][7, 0]), rel=0.02)
        assert seen == int(records.tensors[f"results/0/{level}/predicted"][7, 0])
        assert 0 <= float(image.min()) <= float(image.max()) <= 1


def test_the_short_way_is_the_same() -> None:
    points = attack(network(), TEST.images, TEST.labels, LEVELS, draws=2, judge_draws=2, method="pgd", seed=3)
    assert points == evaluated(network(), methods=("pgd",), draws=2, judge_draws=2, votes=2)[1][0].points
    assert set(evaluation.__all__) >= {"Level", "attack"}
