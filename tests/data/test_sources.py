"""Test how datasets are found in folders, archives and IDX files, and which are refused."""

import gzip
import io
import os
import re
import stat
import struct
import tarfile
import tracemalloc
import unicodedata
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnets.data.containers import Container, open_container
from resnets.data.layout import Source, arrange
from resnets.data.sources import open_source
from resnets.system.errors import DataError
from resnets.tasks.decode import BadImageError
from resnets.tasks.manifest import ManifestRow, read_table
from resnets.tasks.task import PixelStore
from tests.data.photos import pets, prepare, write_folder, write_tar, write_zip


def listing(path: Path) -> list[tuple[str, str, str]]:
    return [(member.name, member.label, member.side) for member in open_source(path).members]


def arranged(*files: str) -> Source:
    return arrange(Container(list(files), [], [], str.encode), Path("where"))


def refuse(path: Path, words: str) -> DataError:
    with pytest.raises(DataError, match=words) as caught:
        open_source(path)
    assert "\n" not in caught.value.what
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize("prefix", ["", "photos/", "a/b/photos/", "./photos/"])
def test_folder_zip_and_tar_give_the_same_members_and_bytes(tmp_path, prefix):
    files = {**pets(3), "README.txt": b"read me"}
    inside = {prefix + name: data for name, data in files.items()}
    places = [
        write_folder(tmp_path / "folder" / prefix, files),
        write_folder(tmp_path / "outer", {f"{prefix}{n}": d for n, d in files.items()}),
        write_zip(tmp_path / "photos.zip", {n.removeprefix("./"): d for n, d in inside.items()}),
        write_tar(tmp_path / "photos.tar", inside),
        write_tar(tmp_path / "photos.tar.gz", inside),
        write_tar(tmp_path / "called_otherwise.gz", inside),
    ]
    expected = {name: data for name, data in files.items() if name.endswith(".png")}
    for place in places:
        source = open_source(place)
        assert source.classes == ["cat", "dog"]
        assert [path.rsplit("/", 1)[-1] for path in source.ignored] == ["README.txt"]
        assert {m.name: content for m, content in source.read(source.members)} == expected
        assert {m.name: m.label for m in source.members} == {n: n[:3] for n in expected}


def test_a_few_members_can_be_read_in_the_middle(tmp_path):
    for path in (
        write_tar(tmp_path / "a.tar.gz", pets(5)),
        write_zip(tmp_path / "a.zip", pets(5)),
        write_folder(tmp_path / "a", pets(5)),
    ):
        source = open_source(path)
        some = source.members[3:8:2]
        assert [member for member, _ in source.read(some)] == some


def test_given_sides_are_kept(tmp_path):
    files = {**pets(2, "set/Train/"), **pets(1, "set/validation/"), **pets(1, "set/test/")}
    found = listing(write_folder(tmp_path / "x", files))
    assert ("Train/cat/0.png", "cat", "train") in found
    assert ("validation/dog/0.png", "dog", "val") in found
    assert ("test/dog/0.png", "dog", "test") in found


def test_a_class_may_be_called_like_a_side():
    files = ["train/1.jpg", "car/1.jpg", "car/red/2.jpg"]
    source = arranged(*files)
    assert [(member.name, member.label, member.side) for member in source.members] == [
        ("train/1.jpg", "train", ""),
        ("car/1.jpg", "car", ""),
        ("car/red/2.jpg", "car", ""),
    ]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "no images found"),
        (["1.jpg", "2.jpg"], "expected one folder per class, found 2 files directly in it"),
        (["1.jpg"], "found 1 file directly in it"),
        (["x/1.jpg", "x/2.jpg"], None),
        (
            ["train/a/1.jpg", "train/b/1.jpg", "other/1.jpg"],
            "the folders other, train do not make up",
        ),
        (["train/a/1.jpg", "training/b/1.jpg"], "do not make up"),
        (["val/a/1.jpg", "test/b/1.jpg"], "do not make up"),
        (["x/a/1.jpg", "y/b/1.jpg"], "no images in x and beside it"),
        (["x/a/1.jpg", "x/readme.txt", "y/b/1.jpg"], "no images in x and beside it"),
        (["a/1.jpg", "A/1.jpg"], "'A' and 'a' differ only in case, blanks or Unicode form$"),
        (
            ["Daisy/1.jpg", "Rose/1.jpg", "daisy/1.jpg", "rose/1.jpg"],
            r"the classes 'Daisy' and 'daisy' differ only in case, .* form \(and 1 more\)$",
        ),
        (["a b/1.jpg", "a  b/1.jpg"], "differ only in case, blanks"),
        (["Кошка/1.jpg", "кошка/1.jpg"], "the classes 'Кошка' and 'кошка' differ only in case"),
        (["=cmd()/1.jpg", "b/1.jpg"], r"the class name '=cmd\(\)' starts like a formula$"),
        (["a\x1b]0;/1.jpg", "b/1.jpg"], r"0;' has control characters$"),
        (["a\udcff/1.jpg", "b/1.jpg"], "' is not UTF-8$"),
        (["a\nb/1.jpg", "b/1.jpg"], "' has control characters$"),
        ([" /1.jpg", "b/1.jpg"], "the class name ' ' is empty$"),
    ],
)
def test_layouts_are_understood_or_refused_in_words(files, words):
    if words is None:
        assert arranged(*files).classes == ["x"]
        return
    with pytest.raises(DataError, match=words):
        arranged(*files)


def test_twins_in_unicode_form_are_refused_and_lone_ones_become_nfc():
    nfc, nfd = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    with pytest.raises(DataError, match=r"caf\\xe9.*caf.*e\\u0301|e\\u0301.*caf\\xe9"):
        arranged(f"{nfc}/1.jpg", f"{nfd}/1.jpg")
    assert arranged(f"{nfd}/1.jpg", "tea/1.jpg").classes == [nfc, "tea"]


def test_raw_files_beside_the_same_photo_are_left_alone_and_lone_ones_are_not():
    source = arranged("a/1.jpg", "a/1.NEF", "a/2.nef", "b/3.heic", "b/3.dng", "b/4.jpg", "b/4.xmp")
    assert sorted(source.ignored) == ["a/1.NEF", "b/3.dng"]
    assert "a/2.nef" in [member.name for member in source.members]


def test_hidden_and_tool_files_are_never_classes(tmp_path):
    clean = write_folder(tmp_path / "clean", pets())
    tools = {
        ".ipynb_checkpoints/x.png": b"x",
        "__MACOSX/cat/._1.png": b"x",
        "cat/.DS_Store": b"x",
        "cat/Thumbs.db": b"x",
        "@eaDir/y.png": b"x",
    }
    messy = write_folder(tmp_path / "messy", {**pets(), **tools})
    assert listing(messy) == listing(clean)
    assert sorted(open_source(messy).ignored) == [
        ".ipynb_checkpoints",
        "@eaDir",
        "__MACOSX",
        "cat/.DS_Store",
        "cat/Thumbs.db",
    ]
    in_zip = open_source(write_zip(tmp_path / "messy.zip", {**pets(), **tools}))
    assert sorted(in_zip.ignored) == sorted(tools)
    assert in_zip.classes == ["cat", "dog"]


def test_an_archive_of_a_phone_or_a_mac_is_understood(tmp_path):
    """macOS and some phones write UTF-8 names into a zip without the flag that says so."""
    files = {**pets(2, "Photos-1/我的照片/"), "Photos-1/我的照片/кот/1.png": b"x"}
    files |= {"Photos-1/notes.txt": b"x", "__MACOSX/Photos-1/我的照片/cat/._0.png": b"x"}
    files |= {
        "Photos-1/.DS_Store": b"x",
        "Photos-1/Icon\r": b"",
        "Photos-1/我的照片/قط/1.png": b"x",
    }
    path = write_zip(tmp_path / "x.zip", files)
    data = bytearray(path.read_bytes())
    for signature, place in ((b"PK\3\4", 7), (b"PK\1\2", 9)):
        start = -1
        while (start := data.find(signature, start + 1)) >= 0:
            data[start + place] &= ~8  # the flag "names are UTF-8"
    path.write_bytes(data)
    source = open_source(path)
    assert source.classes == ["cat", "dog", "кот", "قط"]
    assert len(source.members) == 6
    assert [content for _, content in source.read(source.members)].count(b"x") == 2
    assert len(source.ignored) == 4
    assert open_source(write_folder(tmp_path / "x", files)).classes == source.classes


def test_an_empty_class_folder_stays_a_class(tmp_path):
    root = write_folder(tmp_path / "x", pets())
    (root / "bird").mkdir()
    assert open_source(root).classes == ["bird", "cat", "dog"]


def test_images_outside_the_class_folders_are_named(tmp_path):
    root = write_folder(tmp_path / "x", {**pets(), "lost.JPG": b"x", "notes.txt": b"x"})
    source = open_source(root)
    assert (source.homeless, source.ignored) == (["lost.JPG"], ["notes.txt"])


def test_pipes_and_sockets_are_never_opened(tmp_path):
    root = write_folder(tmp_path / "x", pets())
    os.mkfifo(root / "cat" / "pipe.png")
    source = open_source(root)
    content = {member.name: found for member, found in source.read(source.members)}
    assert content["cat/pipe.png"].what == "not a regular file"


def test_links_to_files_are_followed_and_links_to_folders_refused(tmp_path):
    root = write_folder(tmp_path / "x", pets())
    (root / "cat" / "alias.png").symlink_to("0.png")
    (root / "cat" / "dangling.png").symlink_to("nothing.png")
    (root / "cat" / "loop.png").symlink_to("loop.png")
    source = open_source(root)
    content = {member.name: found for member, found in source.read(source.members)}
    assert content["cat/alias.png"] == content["cat/0.png"]
    for name in ("cat/dangling.png", "cat/loop.png"):
        assert isinstance(content[name], BadImageError)
    (root / "bird").symlink_to(root / "cat")
    refuse(root, "bird: a link to a folder")


def test_odd_file_names_work_from_every_container(tmp_path):
    odd = [
        "two words.png", "quote'\".png", "new\nline.png", "🐈.png", "-rf.png", "=1+1.png",
        "x" * 251 + ".png", "$(touch x).png", "A.png", "a.png", "no", "1e3", "<script>.png",
    ]  # fmt: skip
    files = {f"{label}/{name}": b"x" for label in ("no", "1e3") for name in odd}
    folder = write_folder(tmp_path / "x", files)
    for path in (
        folder,
        write_zip(tmp_path / "x.zip", files),
        write_tar(tmp_path / "x.tar", files),
    ):
        assert sorted(name for name, _, _ in listing(path)) == sorted(files)
        assert open_source(path).classes == ["1e3", "no"]


def test_a_folder_that_cannot_be_listed_stops(tmp_path):
    refuse(tmp_path / "nowhere", "no such folder or archive")


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        *((f"labels{suffix}", "save the table as .csv") for suffix in (".txt", ".XLSX", ".json")),
        *((f"photos{suffix}", "unpack it, and name the folder") for suffix in (".rar", ".7z")),
        *((f"0{suffix}", "name the folder above it") for suffix in (".JPG", ".png", ".nef")),
        ("photos.zip", "correct the path, or fetch the archive again"),
    ],
)
def test_a_file_that_is_no_archive_is_told_what_to_do_by_its_name(tmp_path, name, fix):
    path = write_folder(tmp_path, {name: b"PK\3\4 and then no more"}) / name
    error = refuse(path, "neither a folder nor a readable zip or tar archive(: it starts as.*)?$")
    assert error.fix == fix
    if name == "photos.zip":
        assert error.what.endswith("archive: it starts as neither does, or is cut off")
    write_zip(path, pets(1))  # as a spreadsheet is one
    if name != "photos.zip":
        assert refuse(path, "neither a folder nor a readable zip").fix == fix


@pytest.mark.parametrize(
    ("files", "fix"),
    [
        (["1.jpg", "2.jpg"], "into a folder of its own$"),
        (["1.jpg", "labels.csv"], "folder of its own, or name the table: {root}/labels.csv$"),
        (
            ["1.jpg", "a.tsv", "b.CSV", "images.zip"],
            ", or name the table: {root}/a.tsv or {root}/b.CSV$",
        ),
        (["rose.zip", "daisy.ZIP", "notes.txt"], "^unpack the archives inside it$"),
    ],
)
def test_photos_without_class_folders_may_have_a_table_or_be_packed(tmp_path, files, fix):
    root = write_folder(tmp_path / "kag", dict.fromkeys(files, b"x"))
    error = refuse(root, f"expected one folder per class, found {len(files)} files directly")
    assert re.search(fix.format(root=root), error.fix)
    packed = write_zip(tmp_path / "kag.zip", dict.fromkeys(files, b"x"))
    fix = re.sub("or name the.*", "or unpack it and name the table in it$", fix)
    assert re.search(fix, refuse(packed, "expected one folder per class").fix)


def test_sides_without_class_folders_are_no_classes(tmp_path):
    """As many competitions give them: no network shall learn to tell train from test."""
    files = dict.fromkeys(["train/1.jpg", "train/2.jpg", "Test/3.jpg", "train.csv"], b"x")
    root = write_folder(tmp_path / "kag", files)
    error = refuse(root, "Test and train hold images, and no class folders$")
    assert error.fix.endswith(f"or name the table: {root}/train.csv")
    refuse(write_zip(tmp_path / "kag.zip", files), "no class folders$")
    vehicles = write_folder(tmp_path / "way", {"train/1.jpg": b"x", "bus/2.jpg": b"x"})
    assert open_source(vehicles).classes == ["bus", "train"]


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_names_that_lead_elsewhere_lead_nowhere(tmp_path, write):
    """Nothing is extracted, so such a name is one below the root of the archive."""
    before = sorted(tmp_path.parent.rglob("*"))
    names = {
        "../cat/out.png": "cat/out.png",
        "dog/../../cat/up.png": "cat/up.png",
        "/cat/top.png": "cat/top.png",
        "cat\\..\\C:evil.png": None,
    }
    path = write(tmp_path / "x.archive", {**pets(1), **dict.fromkeys(names, b"bytes")})
    source = open_source(path)
    content = {m.name: found for m, found in source.read(source.members) if found == b"bytes"}
    assert content == {name: b"bytes" for name in names.values() if name}
    assert source.classes == ["cat", "dog"]
    path.unlink()
    assert sorted(tmp_path.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE],
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    path = write_tar(tmp_path / "x.tar", pets())
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("cat/strange.png")
        info.type, info.linkname = kind, "0.png"
        archive.addfile(info)
    error = refuse(path, "'cat/strange.png' in it is a link, a device or a sparse file")
    assert "--dereference" in error.fix


def test_links_and_encrypted_members_of_a_zip_are_refused_alone(tmp_path):
    link = zipfile.ZipInfo("cat/link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = write_zip(tmp_path / "link.zip", pets(1))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "0.png")
    assert [*open_container(path).read(["cat/link.png"])] == [b"0.png"]

    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1  # the flag "encrypted" of the first entry
    path.write_bytes(data)
    locked, good = open_container(path).read(["cat/0.png", "dog/0.png"])
    assert (locked.reason, locked.what) == ("encrypted", "locked with a password")
    assert locked.fix == "unpack the archive with its password, and name the folder"
    assert good == pets(1)["dog/0.png"]


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_of_two_members_with_one_name_the_last_one_counts(tmp_path, write):
    path = write(tmp_path / "x.archive", {**pets(1), "./cat/0.png": b"newer"})
    container = open_container(path)
    assert len(container.files) == 2
    assert [*container.read(["cat/0.png"])] == [b"newer"]


def test_a_wrong_checksum_spoils_only_its_member(tmp_path):
    path = write_zip(tmp_path / "x.zip", pets(2))
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 20] ^= 1
    path.write_bytes(data)
    source = open_source(path)
    bad = [m.name for m, found in source.read(source.members) if isinstance(found, BadImageError)]
    assert bad == ["cat/0.png"]


def test_a_member_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("resnets.tasks.decode.MAX_FILE_BYTES", 1000)
    files = {**pets(1), "cat/huge.png": bytes(10_000)}
    for path in (write_zip(tmp_path / "x.zip", files), write_tar(tmp_path / "x.tar", files)):
        source = open_source(path)
        found = {member.name: content for member, content in source.read(source.members)}
        assert found["cat/huge.png"].reason == "too_large"


def lying_zip(method: int, body: bytes, *, declared: int, crc: int) -> bytes:
    """Return a zip of one member that is not of the size that its two headers declare."""
    name = b"cat/0.png"
    sizes = struct.pack("<HHIIIHH", 0, 33, crc, len(body), declared, len(name), 0)
    local = struct.pack("<4sHHH", b"PK\3\4", 46, 0, method) + sizes + name + body
    entry = struct.pack("<4sHHHH", b"PK\1\2", 46, 46, 0, method) + sizes + bytes(14) + name
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 1, 1, len(entry), len(local), 0)
    return local + entry + end


@pytest.mark.parametrize(("real", "declared"), [(2**26, 100), (100, 2**26)])
def test_a_member_of_another_size_than_declared_costs_neither_memory_nor_others(
    tmp_path, real, declared
):
    """Of zeros, with the checksum of what is read of them, as a careful attacker has it."""
    deflate = zlib.compressobj(wbits=-15)
    body = deflate.compress(bytes(real)) + deflate.flush()
    crc = zlib.crc32(bytes(100))
    path = tmp_path / "x.zip"
    path.write_bytes(lying_zip(zipfile.ZIP_DEFLATED, body, declared=declared, crc=crc))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("dog/1.png", b"good")
    tracemalloc.start()
    try:
        source = open_source(path)
        lie, good = [content for _, content in source.read(source.members)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (lie, good) == (bytes(100), b"good")
    assert peak < 2**22


@pytest.mark.parametrize(
    ("name", "write"), [("x.zip", write_zip), ("x.tar", write_tar), ("x.tar.gz", write_tar)]
)
def test_damaged_archives_are_refused_or_their_members_are(tmp_path, name, write):
    path = write(tmp_path / name, pets(2))
    whole = path.read_bytes()
    source = open_source(path)
    original = [content for _, content in source.read(source.members)]
    rng = np.random.default_rng(0)
    for number in range(120):
        data = bytearray(whole)
        if number % 2:
            del data[rng.integers(len(data)) :]
        else:
            for _ in range(3):
                data[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(data)
        try:
            source = open_source(path)
            found = [content for _, content in source.read(source.members)]
        except DataError:
            continue
        if name != "x.tar":  # a plain tar has no checksum of its contents
            assert all(isinstance(one, BadImageError) or one in original for one in found)


def tiny_imagenet(root: str) -> dict[str, bytes]:
    boxes = "val_1.JPEG\tn02\t0\t0\t44\t40\nval_0.JPEG\tn01\t0\t0\t63\t63\n"
    files = {f"{root}val/val_annotations.txt": boxes.encode(), f"{root}wnids.txt": b"n01\nn02\n"}
    for number in range(2):
        files[f"{root}val/images/val_{number}.JPEG"] = b"val %d" % number
        files[f"{root}test/images/test_{number}.JPEG"] = b"test"
        for label in ("n01", "n02"):
            name = f"{label}_{number}.JPEG"
            files[f"{root}train/{label}/images/{name}"] = name.encode()
            files[f"{root}train/{label}/{label}_boxes.txt"] = b"0"
    return files


@pytest.mark.parametrize("root", ["", "tiny-imagenet-200/"])
@pytest.mark.parametrize("write", [write_zip, write_folder, write_tar])
def test_tiny_imagenet_is_read_in_its_own_layout(tmp_path, write, root):
    path = write(tmp_path / "x", {**tiny_imagenet(root), f"{root}val/images/odd.JPEG": b"x"})
    source = open_source(path)
    assert {(m.name, m.label, m.side): content for m, content in source.read(source.members)} == {
        **{
            (f"train/{label}/{label}_{number}.JPEG", label, "train"): b"%s_%d.JPEG"
            % (label.encode(), number)
            for label in ("n01", "n02")
            for number in range(2)
        },
        ("val/n01/val_0.JPEG", "n01", "val"): b"val 0",
        ("val/n02/val_1.JPEG", "n02", "val"): b"val 1",
    }
    assert (source.classes, source.homeless) == (["n01", "n02"], ["val/odd.JPEG"])
    assert source.ignored == [f"{root}test"]


def test_tiny_imagenet_in_class_folders_keeps_its_val(tmp_path):
    """As the usual scripts leave it: their images moved, the list of them still there."""
    usual = {f"val/{label}/images/val_{k}.JPEG": b"v" for k, label in enumerate(("n01", "n02"))}
    files = {k: v for k, v in tiny_imagenet("").items() if not k.startswith("val/images")}
    found = listing(write_folder(tmp_path / "x", {**files, **usual}))
    assert [row for row in found if row[2] == "val"] == [
        ("val/n01/val_0.JPEG", "n01", "val"), ("val/n02/val_1.JPEG", "n02", "val"),
    ]  # fmt: skip


def test_the_shared_part_of_tiny_imagenet_is_read_as_it_is(shared_data):
    source = open_source(shared_data / "tiny_imagenet_199.zip")
    sides = [member.side for member in source.members]
    assert (sides.count("train"), sides.count("val"), len(sides)) == (59_700, 9_950, 69_650)
    assert (len(source.classes), source.homeless) == (199, [])


def write_table(folder: Path, text: str | bytes, name: str = "photos.csv") -> Path:
    for number in range(4):
        write_folder(folder, {f"IMG {number}.png": b"%d" % number, f"sub/{number}.png": b"x"})
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / name


@pytest.mark.parametrize("separator", [",", "\t", ";"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_table_gives_labels_groups_and_sides(tmp_path, separator, encoding):
    lines = [
        "Label|path|by whom|group|Side", "猫|IMG 0.png|x|ann|train", "猫|sub\\1.png||ann|Training",
        "dog |.\\sub\\2.png|x|bob|", "", 'dog |"sub/3.png"||| test ',
    ]  # fmt: skip
    text = "\r\n".join(lines).replace("|", separator)
    source = open_source(write_table(tmp_path, text.encode(encoding)))
    assert [(m.name, m.label, m.side, m.group) for m in source.members] == [
        ("IMG 0.png", "猫", "train", "ann"),
        ("sub/1.png", "猫", "train", "ann"),
        ("sub/2.png", "dog", "train", "bob"),  # as the others have a side
        ("sub/3.png", "dog", "test", ""),
    ]
    assert (source.classes, source.homeless) == (["dog", "猫"], [])
    assert [content for _, content in source.read(source.members)] == [b"0", b"x", b"x", b"x"]


@pytest.mark.parametrize(
    ("text", "words", "fix"),
    [
        ("path,label\n" + ",a\n".join("0123456789x") + ",a", r"11 paths do not exist \(0.*9, …\)$",
         "write paths as seen from /"),
        ("path,label\nC:\\x\\1.png,a\n../no.csv,b", r"2 paths do not exist \(C:.x.1.png, \.\./no",
         "as seen from"),
        ("path,label\nIMG 0.png,a\nimg 1.PNG,a", r"1 path does not exist \(img 1.PNG\)",
         r"^did you mean IMG 1\.png\?$"),
        ("path,label\nSub/[0].png,a\nSUB\\0.PNG,a", r"2 paths do not exist \(Sub/\[0\].png, SUB\\0",
         "as seen from"),
        ("path,label\nIMG 0.png,Cat\nIMG 1.png,cat", "classes 'Cat' and 'cat' differ only in case",
         "rename one"),
        ("path,label\nIMG 0.png,a\n./IMG 0.png,b", r"1 image is listed twice \(IMG 0.png\)",
         "keep one line"),
        ("path,label,side\nIMG 0.png,a,left", r"1 side is none of train, val, test \(left\)",
         "write train, val or test"),
        ("path,label,split\nIMG 0.png,a,left", r"1 side is none of train, val, test \(left\)",
         "write train, val or test"),
        ("path,label,side\nIMG 0.png,a,test", "no image is on the side train", "move some"),
        ("path,label,split,Side\nIMG 0.png,a,train,train", r"1 column is there twice \(side\)",
         "split is another word for side"),
        *(
            (f"path,label,{name}\nIMG 0.png,a,train",
             rf"1 column looks like a side \({name.lower()}\)", "call it side")
            for name in ("Set", "subset", "partition", "fold")
        ),
        ("path,label\n\nIMG 0.png,a,b", r"1 line has not 2 cells \(line 3: IMG 0.png, a, b\)",
         "take the extra cell out"),
        ("path,label\nIMG 0.png\na,b,c", r"2 lines have not 2 cells \(line 2: IMG 0.png, line 3",
         "fill in the missing one"),
        ("path,label\nIMG 0.png,\nIMG 1.png, ", r"2 images have no label \(line 2, line 3\)",
         "write a class into each line, or take it out"),
        ("path,label\n ,a", r"1 image has no path \(line 2\)", "write a path into each line"),
        ("path,label,Label\nIMG 0.png,a,b", r"1 column is there twice \(label\)", "keep one"),
        ("file,Class\nIMG 0.png,a", r"no column path and no column label \(it has file, Class\)",
         "rename the columns to path and label"),
        ("filename,label\nIMG 0.png,a", r"has no column path \(it has filename, label\)",
         "rename the column to path$"),
        ("IMG 0.png,a\nIMG 1.png,b", "its first line names no column path and no column label$",
         "^put path,label above it$"),
        ("path,label\n , ", "it lists no images", "write a line for each below path,label"),
        ("", "it lists no images", "write a line for each below path,label"),
        (b"path,label\na,b\nb,\xff", "line 3 is not UTF-8", 'in Excel: "Save as", "CSV UTF-8"'),
        ('path,label\n"x"y,a', "line 2 has an open quotation mark", "close the quotation mark"),
        ('path,label\n"IMG\n0.png",a\n"IMG 1.png,a\nIMG 2.png,b', "line 4 has an open quot",
         "close the quotation mark"),
    ],
)  # fmt: skip
def test_a_table_that_is_not_clear_is_refused_in_words(tmp_path, text, words, fix):
    assert re.search(fix, refuse(write_table(tmp_path, text), words).fix)


def test_a_table_may_call_its_side_split_and_have_blanks_of_a_spreadsheet(tmp_path):
    text = "path,label,Split\nIMG 0.png,rose,valid\n , , \nIMG 1.png,rose ,train\n,,\n"
    source = open_source(write_table(tmp_path, text))
    assert source.classes == ["rose"]
    assert [(m.name, m.side) for m in source.members] == [
        ("IMG 0.png", "val"),
        ("IMG 1.png", "train"),
    ]


def test_beside_a_side_other_columns_of_a_table_may_have_any_name(tmp_path):
    text = "path,label,side,fold\nIMG 0.png,rose,test,3\nIMG 1.png,rose,train,4"
    assert len(open_source(write_table(tmp_path, text)).members) == 2


def test_paths_of_a_table_may_be_absolute_or_go_round(tmp_path):
    folder = tmp_path / "real"
    (tmp_path / "alias").symlink_to(folder)
    paths = [f"{folder}/IMG 0.png", "../real/IMG 1.png", f"{tmp_path}/alias/IMG 2.png"]
    text = "\n".join(["path,label", *(f"{path},a" for path in paths)])
    for path in (write_table(folder, text), tmp_path / "alias/photos.csv"):
        assert [(name, label) for name, label, _ in listing(path)] == [
            (f"IMG {number}.png", "a") for number in range(3)
        ]
    paths = [f"{folder}/IMG 0.png", "../IMG 1.png"]
    lower = write_table(folder / "sub", "\n".join(["path,label", *(f"{x},a" for x in paths)]))
    error = refuse(lower, r"2 paths lie outside of the table's folder \(/.*/IMG 0\.png, \.\./IMG 1")
    assert "folder that holds them all" in error.fix


def test_a_table_looks_at_nothing_but_what_it_names(tmp_path):
    """Beside it may lie a whole project, with the links of an environment."""
    path = write_table(tmp_path / "x", "path,label\nlinked/1.png,a\nIMG 0.png,b")
    (tmp_path / "x/linked").symlink_to(tmp_path / "x/sub")
    assert [content for _, content in open_source(path).read(open_source(path).members)] == [
        *(b"x", b"0"),
    ]
    (tmp_path / "outside.png").touch()
    path.write_text("path,label\n../outside.png,a\nIMG 0.png,b")
    refuse(path, r"1 path lies outside of the table's folder \(\.\./outside\.png\)")


def test_names_with_backslashes_are_paths_in_a_zip(tmp_path):
    inside = {name.replace("/", "\\"): data for name, data in pets(2).items()}
    assert listing(write_zip(tmp_path / "x.zip", inside)) == listing(
        write_zip(tmp_path / "y.zip", pets(2))
    )


def idx(values: np.ndarray) -> bytes:
    header = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    return header + values.tobytes()


def write_idx(folder: Path, *, zipped: bool = True, num: int = 6) -> Path:
    folder.mkdir()
    for prefix in ("train", "t10k"):
        images = np.arange(num * 12, dtype=np.uint8).reshape(num, 4, 3)
        labels = np.arange(num, dtype=np.uint8) % 3
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{prefix}-{kind}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(idx(values)) if zipped else idx(values))
    return folder


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files_give_pixels_labels_and_sides(tmp_path, zipped):
    folder = write_idx(tmp_path / "x", zipped=zipped)
    source = open_source(folder)
    assert source.classes == ["0", "1", "2"]
    (first, pixels), *_ = source.read(source.members)
    assert (first.name, first.label, first.side) == ("train/00000", "0", "train")
    assert np.array_equal(pixels[..., 0], np.arange(12).reshape(4, 3))
    assert [m.side for m in source.members] == ["train"] * 6 + ["test"] * 6
    (folder / "classes.txt").write_text("T-shirt/top\n../evil\nBag\n")
    assert open_source(folder).classes == ["../evil", "Bag", "T-shirt/top"]
    (folder / "classes.txt").write_text("a\nb\n")
    refuse(folder, "2 names for 3 labels")


def cifar(num: int = 4) -> tuple[dict[str, bytes], dict[str, tuple[int, np.ndarray]]]:
    """Return the files of a small CIFAR-10, and the label and pixels of every image."""
    rng = np.random.default_rng(0)
    files, wanted = {"cifar/batches.meta.txt": b"airplane\nautomobile\nbird\n\n"}, {}
    for batch in ("test_batch", "data_batch_2", "data_batch_1"):  # a tar has an order of its own
        files[f"cifar/{batch}.bin"] = b""
        for position in range(num):
            label, pixels = position % 3, rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            planes = b"".join(pixels[:, :, channel].tobytes() for channel in range(3))
            files[f"cifar/{batch}.bin"] += bytes([label]) + planes
            number = position + num * (batch == "data_batch_2")
            wanted[f"{'test' if batch == 'test_batch' else 'train'}/{number:05}"] = label, pixels
    return files, wanted


@pytest.mark.parametrize("write", [write_tar, write_folder])
def test_the_binary_archive_of_cifar_10_gives_pixels_labels_and_sides(tmp_path, write):
    files, wanted = cifar()
    source = open_source(write(tmp_path / "x.tar.gz", files))
    assert source.classes == ["airplane", "automobile", "bird"]
    found = {member.name: (member, pixels) for member, pixels in source.read(source.members)}
    assert found.keys() == wanted.keys()
    for name, (label, pixels) in wanted.items():
        member, content = found[name]
        assert (source.classes.index(member.label), member.side) == (label, name.split("/")[0])
        assert np.array_equal(content, pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_cifar_10_is_packed_in_colour_or_as_pillow_makes_it_grey(tmp_path, channels):
    files, wanted = cifar()
    path = write_tar(tmp_path / "x.tar.gz", files)
    prepare(path, tmp_path / "out", channels=channels)
    rows = read_table(tmp_path / "out/manifest.csv", ManifestRow)
    images = PixelStore(tmp_path / "out/images.bin", rows)
    assert {row.format for row in rows} == {"CIFAR"}
    for row, image in zip(rows, images, strict=True):
        picture = Image.fromarray(wanted[row.id][1])
        expected = np.asarray(picture if channels == 3 else picture.convert("L"))
        assert np.array_equal(image.squeeze(), expected)


def test_damaged_cifar_10_is_named(tmp_path):
    files, _ = cifar()
    cut = {**files, "cifar/data_batch_1.bin": files["cifar/data_batch_1.bin"][:-1]}
    refuse(write_tar(tmp_path / "a.tar", cut), "data_batch_1.bin is damaged or not of CIFAR-10")
    short = {**files, "cifar/batches.meta.txt": b"airplane\nbird\n"}
    refuse(write_tar(tmp_path / "b.tar", short), "2 names for 3 labels")


def test_labels_of_idx_files_may_have_names_in_any_coding_and_start_at_one(tmp_path):
    path = write_idx(tmp_path / "x", zipped=False)
    (path / "classes.txt").write_bytes("Hemd\nKleid\nSchuh".encode("utf-8-sig"))
    assert open_source(path).classes == ["Hemd", "Kleid", "Schuh"]
    (path / "classes.txt").write_bytes("Äpfel\nKleid\nSchuh".encode("latin-1"))
    assert len(open_source(path).classes) == 3
    (path / "classes.txt").unlink()
    for prefix in ("train", "t10k"):
        labels = np.arange(6, dtype=np.uint8) % 3 + 1
        (path / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))
    assert open_source(path).classes == ["1", "2", "3"]


@pytest.mark.parametrize("end", [0, 3, 10, 30, -1])
@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_idx_files_are_named(tmp_path, end, zipped):
    folder = write_idx(tmp_path / "x", zipped=zipped)
    path = next(folder.glob("train-images*"))
    path.write_bytes(path.read_bytes()[:end])
    refuse(folder, "train-images-idx3-ubyte")


def test_idx_files_must_fit_together(tmp_path):
    folder = write_idx(tmp_path / "x")
    next(folder.glob("t10k-labels*")).unlink()
    refuse(folder, "t10k-labels-idx1-ubyte: no IDX file.*No such file")
    write_idx(tmp_path / "y", num=9)
    labels = next((tmp_path / "y").glob("train-labels*"))
    next((tmp_path / "x").glob("train-labels*")).write_bytes(labels.read_bytes())
    (folder / labels.name.replace("train", "t10k")).write_bytes(labels.read_bytes())
    refuse(folder, "6 train images, but 9 labels")
    with gzip.open(folder / labels.name, "wb") as file:
        file.write(io.BytesIO(b"\0\0\x09\1\0\0\0\1\0").read())
    refuse(folder, "no IDX file with 1 axes of bytes")
