"""What `rapa attack` is asked to do: from the command line, and from records that it goes on with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from rapa_cli import console
from rapa_cli.attacks.levels import SNR, space_named
from rapa_cli.commands import options
from rapa_cli.errors import ConfigError

if TYPE_CHECKING:
    from rapa_cli.attacks.records import Level, Origin, Records, Settings
    from rapa_cli.attacks.threat import Threat
    from rapa_cli.commands.session import Subject
    from rapa_cli.layers.network import Network

DEFAULT_SNR = ",".join(f"{level:g}" for level in SNR)
JUDGE_DRAWS = 16
REDUCED = "reduced"


@dataclass(frozen=True)
class Request:
    """Options of `rapa attack` that decide what it finds; None where one was left out.

    Attributes:
        checkpoints: what is attacked.
        baseline: what they are compared with.
        source: what transfer attacks are made on, a checkpoint or `reduced`.
        data: name of the data set.
        images: how many of it.
        levels: strengths.
        methods: names.
        threats: as they are written.
        snr_space: raw or standardized.
        exact_snr: whether ratios are met after cutting.
        draws: that score.
        judge_draws: that judge again.
        votes: how many of them vote.
        seed: of all draws.
        noise: whether arrays are read with noise.
        save_images: whether adversarial images are kept.
        batch_size: images at a time.
    """

    checkpoints: tuple[str, ...] | None = None
    baseline: str | None = None
    source: str | None = None
    data: str | None = None
    images: int | None = None
    levels: tuple[Level, ...] | None = None
    methods: tuple[str, ...] | None = None
    threats: tuple[str, ...] | None = None
    snr_space: str | None = None
    exact_snr: bool | None = None
    draws: int | None = None
    judge_draws: int | None = None
    votes: int | None = None
    seed: int | None = None
    noise: bool | None = None
    save_images: bool | None = None
    batch_size: int | None = None

    def or_as(self, records: Records) -> Request:
        """This request, with what it leaves out as in the evaluation that records are of."""
        before = records.settings
        recorded = Request(
            tuple(records.from_here(origin) for origin in before.networks if not origin.baseline),
            next((records.from_here(origin) for origin in before.networks if origin.baseline), None),
            REDUCED if before.source is None else records.from_here(before.source),
            # The rest of the fields have the same names.
            **{field.name: getattr(before, field.name) for field in fields(Request)[3:]},
        )
        given = {field.name: getattr(self, field.name) for field in fields(Request)}
        return replace(recorded, **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class Job:
    """A request with its networks and images loaded.

    Attributes:
        subjects: the networks, a baseline last.
        source: the network that transfer attacks are made on; None for each network's own reduction.
        settings: everything that decides what is found.
    """

    subjects: list[Subject]
    source: Network | None
    settings: Settings

    @property
    def plain(self) -> bool:
        """Whether this is the paper's attack alone: FGSM, a gradient on one draw, the score on another."""
        settings = self.settings
        return (settings.methods, settings.threats, settings.judge_draws) == (("fgsm",), ("fresh-draw",), 0)


def prepared(request: Request, load: Callable[[str | None, Request], Subject]) -> Job:
    """Loads what a request names, and fills in what it leaves open.

    Args:
        request: what was asked.
        load: gives a network with its images by the name of its checkpoint, None for the newest run.

    Raises:
        ConfigError: options that do not fit each other.
        FileError: a checkpoint or data is missing or damaged.
    """
    from rapa_cli.attacks.evaluation import attacks_of, check_fit
    from rapa_cli.attacks.records import Settings, digest_images
    from rapa_cli.attacks.snr import space_of

    levels = request.levels or tuple(levels_named(None, None))
    if request.exact_snr and levels[0].snr_db is None:
        raise ConfigError("--exact-snr cannot go with --eps", hint="name ratios: --snr 33")
    methods, threats = request.methods or ("fgsm",), request.threats or ("fresh-draw",)
    attacks = attacks_of(methods, threats)
    transfer = any(attack.threat.name == "transfer" for attack in attacks)
    if request.source not in (None, REDUCED) and not transfer:
        raise ConfigError("--source cannot go without --threat transfer", hint="add --threat transfer")
    judging, voting = _judges(request, [attack.threat for attack in attacks])
    names: tuple[str | None, ...] = request.checkpoints or (None,)
    first = load(names[0], request)
    # All are judged on the images of the first.
    request = replace(request, data=first.data)
    subjects = [first, *(load(name, request) for name in names[1:])]
    if request.baseline is not None:
        subjects.append(load(request.baseline, request))
    space = space_named(request.snr_space or "raw")
    # Before anything is computed: a method that cannot work must not be found out after hours of others.
    for one in subjects:
        check_fit(attacks, tuple(one.images.shape[1:]), one.network.classes)
        space_of(one.network, space)
    source = load(request.source, request) if transfer and request.source not in (None, REDUCED) else None
    return Job(
        subjects,
        None if source is None else source.network,
        Settings(
            networks=tuple(_origin(one, place >= len(names)) for place, one in enumerate(subjects)),
            source=None if source is None else _origin(source),
            data=first.data,
            data_sha256=digest_images(first.images, first.labels),
            images=len(first.images),
            levels=levels,
            methods=methods,
            threats=threats,
            snr_space=space,
            exact_snr=bool(request.exact_snr),
            draws=request.draws or 1,
            judge_draws=judging,
            votes=voting,
            seed=request.seed or 0,
            noise=request.noise is not False,
            save_images=bool(request.save_images),
            batch_size=request.batch_size or _fitting(subjects),
            device=next(first.network.parameters()).device.type,
        ),
    )


def levels_named(eps: str | None, snr: str | None) -> list[Level]:
    """The levels that `--eps` or `--snr` name.

    Raises:
        ConfigError: both, or a value outside its range.
    """
    from rapa_cli.attacks.records import Level

    if eps is not None and snr is not None:
        raise ConfigError("--eps and --snr are two ways to say the same", hint="give one of them")
    if eps is None:
        return [Level(snr_db=value) for value in _snr_values(DEFAULT_SNR if snr is None else snr)]
    values = options.parse_levels(eps, "--eps")
    for value in values:
        if not 0 <= value <= 1:
            hint = f"pixels go from 0 to 1; did you mean {value:g}/255?" if value > 1 else "pixels go from 0 to 1"
            raise ConfigError(f"--eps: got {value:g}, allowed are numbers from 0 to 1", hint=hint)
    if 1 in values:
        console.note("--eps 1 is the whole range of a pixel; one step of 255 is written 1/255")
    return [Level(eps=value) for value in values]


def _snr_values(text: str) -> list[float]:
    values = options.parse_levels(text, "--snr")
    for value in values:
        if not -100 <= value <= 200:
            raise ConfigError(
                f"--snr: got {value:g}, allowed are -100 to 200 dB",
                hint="the paper attacks with about 60 to 20 dB; 33 dB is its threshold of human perception",
            )
    return values


def _judges(request: Request, threats: Sequence[Threat]) -> tuple[int, int]:
    """How many draws judge, and how many of them vote."""
    from rapa_cli.attacks.judging import voting_draws

    judging = request.judge_draws
    if judging is None:
        plain = request.methods is None and request.threats is None and request.votes is None
        judging = 0 if plain else max(JUDGE_DRAWS, request.votes or 0, *(2 * threat.known for threat in threats))
    return judging, voting_draws(threats, judging, request.votes)


def _origin(subject: Subject, baseline: bool = False) -> Origin:
    from rapa_cli.attacks.records import Origin
    from rapa_cli.files import digest

    return Origin(path=str(subject.path), sha256=digest(subject.path), chosen=subject.chosen or "", baseline=baseline)


def _fitting(subjects: list[Subject]) -> int:
    from rapa_cli.attacks.batching import batch_size

    return min(batch_size(one.network, tuple(one.images.shape[1:])) for one in subjects)
