"""The settings of one run, everything that can change its numbers, as frozen dataclasses."""

import hashlib
import json
import math
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from reprlib import repr as shown
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from aol.catalog import DATASETS, DatasetName

Kind = Literal["patchwise", "fc", "conv", "std"]
Precision = Literal["float32", "tf32", "bf16"]
Certify = Literal["float64", "float32"]
Shuffle = Literal["full", "authors"]
AttackName = Literal["pgd_l2"]
Section = TypeVar("Section")
NOT_IN_DIGEST = ("seed", "attack")
DESCRIPTIONS = {
    float: "a number",
    int: "a whole number below 2**63",
    bool: "true or false",
    NoneType: "null",
}


def _check_positive(**values: float | None) -> list[str]:
    return [
        f"{name}: must be positive and finite, got {value}"
        for name, value in values.items()
        if value is not None and not 0 < value < math.inf
    ]


def _raise_all(problems: list[str]) -> None:
    """Raise all problems of one section as one ValueError, a line each: `field: problem`."""
    if problems:
        raise ValueError("\n".join(problems))


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One of the paper's architectures and its size.

    `size` is the paper's size parameter (channels kept before the dense part of "patchwise",
    base width of "conv"); "fc" and "std" ignore it. `width` multiplies every width of the
    architecture, `size` included; the paper's models have 1.
    """

    kind: Kind
    size: int = 16
    width: float = 1.0

    def __post_init__(self) -> None:
        _raise_all(_check_positive(size=self.size, width=self.width))


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The images of a run. The limits keep the first images of a fixed shuffled order.

    `shuffle` is how the training images are ordered in each epoch (see `aol.data.shuffle`).
    """

    name: DatasetName
    train_limit: int | None = None
    test_limit: int | None = None
    augment: bool = True
    shuffle: Shuffle = "full"

    def __post_init__(self) -> None:
        _raise_all(_check_positive(train_limit=self.train_limit, test_limit=self.test_limit))

    @property
    def classes(self) -> int:
        """The number of classes of the dataset."""
        return len(DATASETS[self.name].classes)

    @property
    def train_images(self) -> int:
        """The number of images of an epoch."""
        images = DATASETS[self.name].train_images
        return min(self.train_limit or images, images)

    @property
    def test_images(self) -> int:
        """The number of images of every evaluation."""
        images = DATASETS[self.name].test_images
        return min(self.test_limit or images, images)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The two numbers of the offset cross-entropy, in units of the network's scores."""

    offset: float
    temperature: float

    def __post_init__(self) -> None:
        problems = _check_positive(temperature=self.temperature)
        if not 0 <= self.offset < math.inf:
            problems.append(f"offset: must be finite and not negative, got {self.offset}")
        _raise_all(problems)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """SGD as the authors ran it.

    `l2` is Keras's factor: `l2 * sum(w**2)` is added to the loss for every raw kernel (not
    the biases), which is torch's `weight_decay=2 * l2`. The learning rate is divided by
    `drop_factor` at the first epoch that starts at or after each fraction of the run in
    `drops`; for 1000 epochs the paper's fractions are its epochs 900, 990 and 999.
    """

    learning_rate: float = 1e-3
    momentum: float = 0.9
    nesterov: bool = True
    l2: float = 5e-4
    drops: tuple[float, ...] = (0.9, 0.99, 0.999)
    drop_factor: float = 10.0

    def __post_init__(self) -> None:
        problems = _check_positive(learning_rate=self.learning_rate, drop_factor=self.drop_factor)
        if not 0 <= self.momentum < 1:
            problems.append(f"momentum: must be in [0, 1), got {self.momentum}")
        if self.nesterov and self.momentum == 0:
            problems.append("nesterov: needs a momentum above 0")
        if not 0 <= self.l2 < math.inf:
            problems.append(f"l2: must be finite and not negative, got {self.l2}")
        if not all(0 < drop < 1 for drop in self.drops):
            problems.append(f"drops: each is a fraction in (0, 1), got {list(self.drops)}")
        _raise_all(problems)


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """An attack on the trained network, in L2 up to `radius`, on the first `images` test images.

    See `aol.training.attack`.
    """

    radius: float
    name: AttackName = "pgd_l2"
    steps: int = 50
    images: int | None = None

    def __post_init__(self) -> None:
        _raise_all(_check_positive(radius=self.radius, steps=self.steps, images=self.images))


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All settings that can change the numbers of one run.

    `precision` is the arithmetic of training; `certify` that of the last evaluation, whose
    accuracy, CRA and margins are the run's result (the others are in float32). `attack` adds a
    measurement after training. It changes no other number and is no part of the digest.

    A new field needs a default that keeps the old behaviour, and no default may change: the digest
    leaves out fields at their default, so that the keys of finished runs stay as they are.
    """

    model: ModelConfig
    data: DataConfig
    loss: LossConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    epochs: int = 1000
    batch_size: int = 250
    seed: int = 0
    precision: Precision = "float32"
    eval_every: int = 1
    certify: Certify = "float64"
    attack: AttackConfig | None = None

    def __post_init__(self) -> None:
        problems = _check_positive(
            epochs=self.epochs, batch_size=self.batch_size, eval_every=self.eval_every
        )
        if not 0 <= self.seed < 2**63:
            problems.append(f"seed: must be in [0, 2**63), got {self.seed}")
        _raise_all(problems)

    def digest(self) -> str:
        """Return eight hexadecimal digits that identify the training, apart from its seed."""
        settings = _changed_settings(self)
        for name in NOT_IN_DIGEST:
            settings.pop(name, None)
        text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def learning_rate(self, epoch: int) -> float:
        """Return the learning rate of the 0-based `epoch`."""
        rounding = 1e-9  # 0.55 * 100 is a little above 55 in binary
        drops = sum(epoch + rounding >= fraction * self.epochs for fraction in self.optimizer.drops)
        return self.optimizer.learning_rate / self.optimizer.drop_factor**drops

    def evaluates(self, epoch: int) -> bool:
        """Return whether the 0-based `epoch` ends with an evaluation; the last one always does."""
        return (epoch + 1) % self.eval_every == 0 or epoch + 1 == self.epochs


def _changed_settings(config: Any) -> dict[str, Any]:
    """Return the nested settings of a dataclass that differ from their defaults."""
    found: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        default = item.default
        if item.default_factory is not MISSING:
            default = item.default_factory()
        if value == default:
            continue
        if is_dataclass(value):
            found[item.name] = _changed_settings(value)
        else:
            found[item.name] = float(value) if item.type is float else value  # 4 is 4.0
    return found


def flatten(config: TrainConfig) -> dict[str, Any]:
    """Return the settings by dotted name, `{"model.kind": "patchwise", ..., "epochs": 1000}`."""
    flat: dict[str, Any] = {}
    for name, value in asdict(config).items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": item for inner, item in value.items()}
        else:
            flat[name] = value
    return flat


def from_dict(settings: dict[str, Any]) -> TrainConfig:
    """Return the config of the settings from `dataclasses.asdict`, also when read from JSON.

    Raises: KeyError, TypeError, ValueError if they are not those of a config.
    """
    parts = dict(settings)
    optimizer = dict(parts["optimizer"])
    optimizer["drops"] = tuple(optimizer["drops"])
    attack = parts.pop("attack", None)
    return TrainConfig(
        model=_section(ModelConfig, parts.pop("model")),
        data=_section(DataConfig, parts.pop("data")),
        loss=_section(LossConfig, parts.pop("loss")),
        optimizer=_section(OptimizerConfig, optimizer),
        attack=_section(AttackConfig, attack) if attack else None,
        **_with_checked_types(
            TrainConfig, {name: parts[name] for name in parts if name != "optimizer"}
        ),
    )


def _section(kind: type[Section], values: dict[str, Any]) -> Section:
    return kind(**_with_checked_types(kind, dict(values)))


def _with_checked_types(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of fields. Raises: TypeError if one is not of its field's type."""
    types = get_type_hints(kind)
    for name, value in values.items():
        if name in types and not _is_of(types[name], value):
            raise TypeError(f"{name}: must be {_describe(types[name])}, got {shown(value)}")
    return values


def _is_of(wanted: Any, value: object) -> bool:
    """Return whether a value is of a type that the settings use; whole numbers are numbers."""
    arguments = get_args(wanted)
    if get_origin(wanted) is Literal:
        return isinstance(value, str) and value in arguments
    if get_origin(wanted) is tuple:
        return isinstance(value, tuple) and all(_is_of(arguments[0], item) for item in value)
    if arguments:  # of a union
        return any(_is_of(argument, value) for argument in arguments)
    if wanted is float:
        return _is_of(int, value) or isinstance(value, float)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, wanted)


def _describe(wanted: Any) -> str:
    """Return in words what `_is_of` accepts for a type."""
    arguments = get_args(wanted)
    if get_origin(wanted) is Literal:
        return " or ".join(map(repr, arguments))
    if get_origin(wanted) is tuple:
        return f"a list, each item {_describe(arguments[0])}"
    return " or ".join(map(_describe, arguments)) or DESCRIPTIONS.get(wanted, wanted.__name__)
