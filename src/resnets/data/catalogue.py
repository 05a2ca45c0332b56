"""List what `resnets fetch` brings: address, size, checksum, licence and citation of each.

Checksums are the publishers' own: torchvision's MD5 of Fashion-MNIST (Zalando states the same),
TensorFlow Datasets' SHA-256 of the flowers, the digits in torchvision's file names. The ants and
bees have none.
"""

import re
from dataclasses import dataclass

ZALANDO = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion"
GOOGLE = "https://storage.googleapis.com"
TORCHVISION = "https://download.pytorch.org/models"


@dataclass(frozen=True)
class File:
    """Describe one file: its address and what the publisher says about its content."""

    url: str
    size: int | None = None
    sha256: str = ""  # all 64 digits, or the first ones where no more are published
    md5: str = ""
    content_sha256: str = ""  # of what is inside the gzip file, so that it may be packed again

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
    classes: tuple[str, ...] = ()


# The content checksums of Fashion-MNIST are those of the published files: Debian's copies differ
# from them only in the gzip header, where name and time are left out. With both put back (times
# 1504176606 for train, 1504176627 for t10k) they have the published MD5.
ITEMS = {
    "fashion_mnist": Item(
        "raw/fashion_mnist",
        (
            File(
                f"{ZALANDO}/train-images-idx3-ubyte.gz", 26421880,
                md5="8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                content_sha256="c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            ),
            File(
                f"{ZALANDO}/train-labels-idx1-ubyte.gz", 29515,
                md5="25c81989df183df01b3e8a0aad5dffbe",
                content_sha256="bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            ),
            File(
                f"{ZALANDO}/t10k-images-idx3-ubyte.gz", 4422102,
                md5="bef4ecab320f06d8554ea6380940ec79",
                content_sha256="5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            ),
            File(
                f"{ZALANDO}/t10k-labels-idx1-ubyte.gz", 5148,
                md5="bb300cfdad3c16e7a12a480ee83cd310",
                content_sha256="0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            ),
        ),
        "MIT",
        "Xiao, Rasul, Vollgraf: Fashion-MNIST, arXiv:1708.07747, 2017",
        (
            "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
            "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
        ),
    ),
    "hymenoptera": Item(
        "raw",
        (File("https://download.pytorch.org/tutorial/hymenoptera_data.zip"),),
        "not stated by the publisher",
        "Chilamkurthy: Transfer Learning for Computer Vision, PyTorch tutorial",
    ),
    "flowers": Item(
        "raw",
        (
            File(
                f"{GOOGLE}/download.tensorflow.org/example_images/flower_photos.tgz", 228813984,
                sha256="4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c",
            ),
        ),
        "CC BY 2.0, named by photographer inside",
        "The TensorFlow Team: Flowers, 2019",
    ),
}  # fmt: skip


def weights_item(name: str) -> Item:
    """Describe a file of torchvision's weights; its name ends in digits of its SHA-256."""
    found = re.fullmatch(r"[a-z0-9_]+-([0-9a-f]{8})\.pth", name)
    prefix = found[1] if found else ""
    return Item(
        "weights",
        (File(f"{TORCHVISION}/{name}", sha256=prefix),),
        "BSD-3-Clause; trained on ImageNet, whose terms are for research",
        "He et al.: Deep Residual Learning, CVPR 2016; torchvision",
    )
