"""List what `resnets fetch` brings: address, checksum, licence and citation of each.

Checksums are the publishers' own (TensorFlow Datasets' for the flowers, the digits in the names of
weights), but for Fashion-MNIST and CIFAR-10, whose publishers give MD5, and Tiny ImageNet, where
those who use it agree. A .gz file's, but not a .tar.gz file's, is of what it holds, so that
Debian's copies, packed without name and time, pass as well.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from resnets.params.architecture import PUBLISHED

ZALANDO = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion"
PYTORCH = "https://download.pytorch.org"
GOOGLE = "https://storage.googleapis.com/download.tensorflow.org"
CIFAR10 = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
TINY = "https://cs231n.stanford.edu/tiny-imagenet-200.zip"
FLOWERS = f"{GOOGLE}/example_images/flower_photos.tgz"
FASHION_MNIST = {
    "train-images-idx3": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


@dataclass(frozen=True)
class Item:
    """Describe something to fetch."""

    folder: str  # below data/
    files: dict[str, str]  # address: SHA-256, all 64 digits, or the first ones; "" if not published
    megabytes: int
    licence: str
    citation: str
    classes: str = ""  # the content of classes.txt beside IDX files

    def paths(self, root: Path) -> dict[str, Path]:
        """Return the place of the file of each address."""
        return {url: root / self.folder / url.rsplit("/", 1)[1] for url in self.files}


DATASETS = {
    "fashion_mnist": Item(
        "raw/fashion_mnist",
        {f"{ZALANDO}/{name}-ubyte.gz": digits for name, digits in FASHION_MNIST.items()},
        31,
        "MIT",
        "Xiao, Rasul, Vollgraf: Fashion-MNIST, arXiv:1708.07747, 2017",
        "T-shirt/top\nTrouser\nPullover\nDress\nCoat\nSandal\nShirt\nSneaker\nBag\nAnkle boot\n",
    ),
    "hymenoptera": Item(
        "raw",
        {f"{PYTORCH}/tutorial/hymenoptera_data.zip": ""},
        47,
        "not stated by the publisher",
        "Chilamkurthy: Transfer Learning for Computer Vision, PyTorch tutorial",
    ),
    "flowers": Item(
        "raw",
        {FLOWERS: "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c"},
        229,
        "CC BY 2.0, named by photographer inside",
        "The TensorFlow Team: Flowers, 2019",
    ),
    "cifar10": Item(
        "raw",
        {CIFAR10: "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
        170,
        "not stated by the publisher",
        "Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009",
    ),
    "tiny_imagenet": Item(
        "raw",
        {TINY: "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821"},
        248,
        "photos of ImageNet, whose terms are for research",
        "Le, Yang: Tiny ImageNet Visual Recognition Challenge, Stanford CS 231N, 2015",
    ),
}


IMAGENET = "trained on ImageNet (for research)"
PUBLISHERS = {  # of weights: address, licence, citation
    "torchvision": (
        f"{PYTORCH}/models",
        f"BSD-3-Clause; {IMAGENET}",
        "He et al.: Deep Residual Learning, CVPR 2016; torchvision",
    ),
    "timm": (
        "https://github.com/huggingface/pytorch-image-models/releases/download/v0.1-rsb-weights",
        f"Apache-2.0; {IMAGENET}",
        "Wightman, Touvron, Jégou: ResNet strikes back, arXiv:2110.00476, 2021; timm",
    ),
    "facebook": (
        "https://dl.fbaipublicfiles.com/semiweaksupervision/model_files",
        f"CC BY-NC 4.0; {IMAGENET}",
        "Yalniz et al.: Billion-scale semi-supervised learning, arXiv:1905.00546, 2019",
    ),
}
NETWORK = re.compile(r"(wide_)?resne(x)?t\d+(_\d+x\d+|_2)?")  # in the name of a file
MEGABYTES = {
    "resnet18": 45,
    "resnet34": 83,
    "resnet50": 98,
    "resnet101": 171,
    "resnet152": 230,
    "resnext50_32x4": 96,
    "resnext101_32x8": 340,
    "resnext101_64x4": 319,
    "wide_resnet50_2": 263,
    "wide_resnet101_2": 485,
    "wide_resnet50_2-95faca4d.pth": 132,  # these two are in half precision
    "wide_resnet101_2-32ee1156.pth": 243,
}


def all_items() -> dict[str, Item]:
    """Return the datasets and the weights, whose names end in digits of their SHA-256."""
    items = dict(DATASETS)
    for name, (publisher, *_) in PUBLISHED.items():
        digits, network = name.removesuffix(".pth").rpartition("-")[2], NETWORK.search(name)
        assert network
        address, licence, citation = PUBLISHERS[publisher]
        size = MEGABYTES.get(name, MEGABYTES[network[0]])
        files = {f"{address}/{name}": digits}
        items[name] = Item("weights", files, size, licence, citation)
    return items
