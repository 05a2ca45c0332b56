"""List what `resnets fetch` brings: address, size, checksum, licence and citation of each.

Checksums are the publishers' own (TensorFlow Datasets' for the flowers, the digits in torchvision's
file names), but for Fashion-MNIST, whose publisher gives MD5: those here are of what the files with
that MD5 hold, so that Debian's copies, packed without name and time, pass as well. The ants and
bees have none.
"""

from dataclasses import dataclass

from resnets.params.architecture import PUBLISHED

ZALANDO = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion"
GOOGLE = "https://storage.googleapis.com"
PYTORCH = "https://download.pytorch.org"


@dataclass(frozen=True)
class File:
    """Describe one file: its address and what the publisher says about its content."""

    url: str
    size: int | None = None
    sha256: str = ""  # all 64 digits, or the first ones; of a .gz file, of what it holds

    @property
    def name(self) -> str:
        """Return the file's name."""
        return self.url.rsplit("/", 1)[1]


@dataclass(frozen=True)
class Item:
    """Describe something to fetch."""

    folder: str  # below data/
    files: tuple[File, ...]
    licence: str
    citation: str
    classes: str = ""  # the content of classes.txt beside IDX files


FASHION_MNIST = """
train-images-idx3-ubyte.gz 26421880 c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888
train-labels-idx1-ubyte.gz 29515 bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9
t10k-images-idx3-ubyte.gz 4422102 5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b
t10k-labels-idx1-ubyte.gz 5148 0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34
"""
FLOWERS = File(
    f"{GOOGLE}/download.tensorflow.org/example_images/flower_photos.tgz",
    228813984,
    "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c",
)
DATASETS = {
    "fashion_mnist": Item(
        "raw/fashion_mnist",
        tuple(
            File(f"{ZALANDO}/{name}", int(size), sha256)
            for name, size, sha256 in map(str.split, FASHION_MNIST.strip().splitlines())
        ),
        "MIT",
        "Xiao, Rasul, Vollgraf: Fashion-MNIST, arXiv:1708.07747, 2017",
        "T-shirt/top\nTrouser\nPullover\nDress\nCoat\nSandal\nShirt\nSneaker\nBag\nAnkle boot\n",
    ),
    "hymenoptera": Item(
        "raw",
        (File(f"{PYTORCH}/tutorial/hymenoptera_data.zip"),),
        "not stated by the publisher",
        "Chilamkurthy: Transfer Learning for Computer Vision, PyTorch tutorial",
    ),
    "flowers": Item(
        "raw",
        (FLOWERS,),
        "CC BY 2.0, named by photographer inside",
        "The TensorFlow Team: Flowers, 2019",
    ),
}


def all_items() -> dict[str, Item]:
    """Return the datasets and torchvision's weights, whose names end in digits of their SHA-256."""
    licence = "BSD-3-Clause; trained on ImageNet, whose terms are for research"
    citation = "He et al.: Deep Residual Learning, CVPR 2016; torchvision"
    items = dict(DATASETS)
    for name in PUBLISHED:
        digits = name.removesuffix(".pth").rpartition("-")[2]
        file = File(f"{PYTORCH}/models/{name}", sha256=digits)
        items[name] = Item("weights", (file,), licence, citation)
    return items
