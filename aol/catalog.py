"""The datasets: class names, numbers of images, fingerprints. Needs no torch.

A fingerprint identifies a set of labelled images in any order; `aol.data.datasets` computes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

DatasetName = Literal["cifar10", "cifar100", "digits", "digit-pairs"]
Part = Literal["train", "test"]

IMAGE_SIZE = 32
IMAGE_CHANNELS = 3

CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle
bowl boy bridge bus butterfly camel can castle caterpillar cattle
chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain
mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree
plain plate poppy porcupine possum rabbit raccoon ray road rocket
rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


@dataclass(frozen=True)
class Dataset:
    """A dataset: its class names in the order of the labels, its sizes and its fingerprints.

    `torchvision_folder` is torchvision's folder of the dataset, if torchvision has it.
    """

    classes: tuple[str, ...]
    train_images: int
    test_images: int
    fingerprints: Mapping[Part, str]
    torchvision_folder: str | None = None

    @property
    def fingerprint(self) -> str:
        """Return both fingerprints as the store keeps them, `train-test`."""
        return f"{self.fingerprints['train']}-{self.fingerprints['test']}"


DATASETS: dict[str, Dataset] = {
    "cifar10": Dataset(
        tuple(CIFAR10.split()),
        50_000,
        10_000,
        {"train": "9d0c0911520be369", "test": "de520a74c6be9798"},
        "cifar-10-batches-py",
    ),
    "cifar100": Dataset(
        tuple(CIFAR100.split()),
        50_000,
        10_000,
        {"train": "6fd56549bf1b631f", "test": "90b88e951e4c2eaa"},
        "cifar-100-python",
    ),
    "digits": Dataset(
        tuple("0123456789"),
        1_442,
        355,
        {"train": "ddda0fbdddb6cd56", "test": "b0b8e1d499dc517d"},
    ),
    "digit-pairs": Dataset(
        tuple(f"{left}{right}" for left in range(10) for right in range(10)),
        2_500,
        1_000,
        {"train": "f6c9693ddf8dafe9", "test": "52bd0b895902b974"},
    ),
}
