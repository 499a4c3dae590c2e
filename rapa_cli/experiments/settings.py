"""How far experiments are scaled down, and the trainings and tests that they are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rapa_cli.attacks.levels import SNR
from rapa_cli.config import Recipe, load_network, load_recipe, override
from rapa_cli.errors import commas
from rapa_cli.experiments.jobs import Job
from rapa_cli.experiments.measures import paper

PAPER_RECIPE = "paper"
SCHEMES = ("none", "perforated", "enlarged", "random-fixed", "random", "image-overlap", "image-pad", "alternate")
POOLS = ("max", "average", "mixed", "stochastic")
TILES = (16, 4, 1)
LARGE = (128, 32, 8)
VOTES, LARGE_VOTES = 5, 9
HUMAN_SNR = "33"
_LEVELS = ",".join(f"{level:g}" for level in SNR)


def recipe_asked(job: Job) -> Recipe:
    """The recipe that the words of a training ask for.

    Raises:
        ConfigError: it or a change is wrong.
        FileError: there is none of this name.
    """
    changes = [word for number, word in enumerate(job.words) if number and job.words[number - 1] == "--set"]
    recipe = load_recipe(job.option("--recipe") or "short", job.option("--scheme") or "none")
    recipe = override(load_network(job.option("--network") or "full"), recipe, changes)[1]
    return recipe.model_copy(update={"epochs": int(job.option("--epochs") or recipe.epochs)})


@dataclass(frozen=True)
class Settings:
    """What is run.

    Attributes:
        epochs: of each training; None are those of the recipe.
        seeds: trainings of each network, with the seeds 0, 1, ...
        data: data sets of table 1; the other experiments take the first.
        images: test images of votes, reductions and attacks, training images of the regularizer; None are all.
        recipe: of all trainings, or `paper` for the two of the paper.
        changes: `--set` settings for all trainings.
        schemes: rows of table 1.
        pools: rows of table 2, and of figure 3.
        tiles: tiles of the first layer in the experiment `tiles`.
    """

    epochs: int | None = None
    seeds: int = 3
    data: tuple[str, ...] = ("cifar10", "svhn", "cifar100")
    images: int | None = None
    recipe: str = PAPER_RECIPE
    changes: tuple[str, ...] = ()
    schemes: tuple[str, ...] = SCHEMES
    pools: tuple[str, ...] = POOLS
    tiles: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024)

    def train(
        self,
        scheme: str,
        *,
        seed: int,
        tiles: tuple[int, ...] = TILES,
        pool: str = "max",
        data: str | None = None,
        votes: int = 1,
    ) -> Job:
        """The training of a network.

        Args:
            scheme: a tiling scheme, or `enlarged` for the untiled network with as many weights as the tiled one has.
            seed: of the run.
            tiles: of its convolutions; one each where it is not tiled.
            pool: its method of pooling.
            data: the data set; the first one when left out.
            votes: draws that vote on the test images after each epoch.
        """
        network, scheme = ("enlarged", "none") if scheme == "enlarged" else ("full", scheme)
        tiles = (1, 1, 1) if scheme == "none" else tiles
        data = data or self.data[0]
        name = self.recipe_of(scheme)
        counts = commas(tiles)
        words: tuple[str, ...] = ("train", "--network", network, "--data", data)
        words += ("--scheme", scheme, "--tiles", counts, "--pool", pool)
        words += ("--recipe", name, "--epochs", str(self.recipe_for(scheme).epochs), "--seed", str(seed))
        for change in (*self.changes, *([f"test_votes={votes}"] if votes > 1 else [])):
            words += ("--set", change)
        tiling = "none" if scheme == "none" else f"{scheme} {counts}"
        return Job(words, f"{network} {tiling} {pool} {data} seed {seed}")

    @property
    def words(self) -> list[str]:
        """The options of `rapa reproduce` that ask for it."""
        default = Settings()
        given = {
            "--epochs": (self.epochs, default.epochs),
            "--seeds": (self.seeds, default.seeds),
            "--data": (self.data, default.data),
            "--images": (self.images, default.images),
            "--recipe": (self.recipe, default.recipe),
            "--schemes": (self.schemes, default.schemes),
            "--pools": (self.pools, default.pools),
            "--tiles": (self.tiles, default.tiles),
        }
        words = [word for change in self.changes for word in ("--set", change)]
        for name, (value, usual) in given.items():
            if value != usual:
                words += [name, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
        return words

    @property
    def scaled_down(self) -> list[str]:
        """In what it differs from the whole experiment, in words; which rows are run is none of it."""
        default = Settings()
        epochs, theirs = (each.recipe_for("none").epochs for each in (self, default))
        differences = {
            f"recipe {self.recipe} instead of the paper's": self.recipe != default.recipe,
            f"with {', '.join(self.changes)}": bool(self.changes),
            f"{epochs} epochs instead of {theirs}": epochs != theirs,
            f"{self.seeds} {'seed' if self.seeds == 1 else 'seeds'} instead of {default.seeds}": (
                self.seeds < default.seeds
            ),
            f"votes, reductions and attacks on {self.images} test images": self.images is not None,
        }
        return [text for text, differs in differences.items() if differs]

    def paper(self, *keys: str) -> Any:
        """A figure of the paper, all of which but those of table 1 are of CIFAR-10; None for another data set."""
        return paper(*keys) if self.data[0] == "cifar10" else None

    def recipe_of(self, scheme: str) -> str:
        """The name of the recipe for a scheme."""
        if self.recipe != PAPER_RECIPE:
            return self.recipe
        return "paper-none" if scheme == "none" else "paper-tiled"

    def recipe_for(self, scheme: str) -> Recipe:
        """The recipe for a scheme, with the changes and the epochs asked for.

        Raises:
            ConfigError: it or a change is wrong.
            FileError: there is none of this name.
        """
        recipe = load_recipe(self.recipe_of(scheme), scheme)
        changes = [change for change in self.changes if not change.startswith("network.")]
        recipe = override(load_network("full"), recipe, changes)[1]
        return recipe if self.epochs is None else recipe.model_copy(update={"epochs": self.epochs})

    def vote(self, run: Job, votes: int = VOTES) -> Job:
        """A vote of several draws on a trained network."""
        return self._tested("vote", run, f"of {votes}", "-n", str(votes))

    def reduce(self, run: Job, by: str = "norm") -> Job:
        """The reduction of a trained network."""
        return self._tested("reduce", run, f"by {by}", "--by", by)

    def attack(self, run: Job, snr: str = _LEVELS, *, baseline: Job | None = None) -> Job:
        """FGSM on a trained network, with a gradient on one draw and the score on another."""
        against = () if baseline is None else ("--baseline", baseline.run)
        job = self._tested("attack", run, f"at {snr}" if "," not in snr else "sweep", "--snr", snr, *against)
        return job if baseline is None else Job(job.words, job.label, (*job.needs, baseline))

    def confidence(self, run: Job, snr: str = HUMAN_SNR) -> Job:
        """The distribution of the highest probability, clean and under FGSM."""
        return self._tested("evaluate", run, "confidence", "--confidence", snr)

    def inspect(self, run: Job) -> Job:
        """Counts of a trained network and the similarity of its tiles."""
        return Job(("inspect", run.run), run.label, (run,))

    def _tested(self, command: str, run: Job, how: str, *options: str) -> Job:
        images = () if self.images is None else ("--images", str(self.images))
        return Job((command, run.run, *options, *images), f"{how} {run.label}", (run,))
