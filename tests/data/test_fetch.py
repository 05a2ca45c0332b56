"""Test fetching: local files through the same checks, and a local https server with faults."""

import contextlib
import datetime
import gzip
import hashlib
import http.server
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from torchvision.models import get_model_weights, list_models
from typer.testing import CliRunner

from resnets.cli import app
from resnets.data.catalogue import DATASETS, Item, all_items
from resnets.data.fetch import download, fetch, fetch_by_name
from resnets.data.sources import open_source
from resnets.params.architecture import PUBLISHED
from resnets.system.errors import ArtefactError, EnvironmentFault, ParamsError

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def thing(sha256: str, name: str = "thing.zip") -> Item:
    return Item("raw", {f"https://nowhere.invalid/{name}": sha256}, 1, "MIT", "nobody")


def local(tmp_path: Path, content: bytes = CONTENT, name: str = "thing.zip") -> Path:
    path = tmp_path / "local" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("known", [SHA256, SHA256[:8]])
def test_local_files_pass_the_publishers_checksum(tmp_path, known):
    source = local(tmp_path)
    (path,) = fetch(thing(known), tmp_path / "data", source=source)
    assert path == tmp_path / "data/raw/thing.zip"
    assert path.read_bytes() == CONTENT
    assert fetch(thing(known), tmp_path / "data", source=source.parent) == [path]
    source.write_bytes(CONTENT[:-1])
    path.unlink()
    with pytest.raises(ArtefactError, match="not the published file"):
        fetch(thing(known), tmp_path / "data", source=source)
    assert list(path.parent.iterdir()) == []


def test_a_file_packed_again_passes_by_its_content(tmp_path):
    item = thing(SHA256, "thing.gz")
    source = local(tmp_path, gzip.compress(CONTENT, 1))
    assert fetch(item, tmp_path / "data", source=source)
    for wrong in (gzip.compress(b"x"), gzip.compress(CONTENT)[:-9], CONTENT):
        with pytest.raises(ArtefactError, match=f"not the published file.*expected {SHA256}"):
            fetch(item, tmp_path / "other", source=local(tmp_path, wrong))


def test_the_checksum_of_an_archive_is_of_itself(tmp_path):
    packed = gzip.compress(CONTENT)
    item = thing(hashlib.sha256(packed).hexdigest(), "thing.tar.gz")
    assert fetch(item, tmp_path / "data", source=local(tmp_path, packed, "thing.tar.gz"))


def test_without_a_published_checksum_one_must_be_given(tmp_path):
    source = local(tmp_path)
    with pytest.raises(ArtefactError, match=f"names no checksum.*{SHA256}") as caught:
        fetch(thing(""), tmp_path / "data", source=source)
    assert f"--sha256 {SHA256}" in caught.value.fix
    assert [path.name for path in (tmp_path / "data/raw").iterdir()] == ["thing.zip.part"]
    assert fetch(thing(""), tmp_path / "data", source=source, sha256=SHA256)
    with pytest.raises(ArtefactError, match="not the published file"):
        fetch(thing(""), tmp_path / "data", sha256="0" * 64)  # what is there already
    for wrong in ("123", "z" * 64):
        with pytest.raises(ParamsError, match="64 hex digits"):
            fetch(thing(""), tmp_path / "data", sha256=wrong)


@pytest.mark.parametrize(("given", "named"), [(".", "thing.zip"), ("none", "none")])
def test_missing_local_files_are_named(tmp_path, given, named):
    with pytest.raises(EnvironmentFault, match=f"{tmp_path / named}: No such file") as caught:
        fetch(thing(SHA256), tmp_path / "data", source=tmp_path / given)
    assert caught.value.fix == "let --from name thing.zip, or a folder that has it"


def test_a_wrong_local_file_is_blamed_and_not_its_copy(tmp_path):
    source = local(tmp_path, b"another", "0.jpg")
    with pytest.raises(ArtefactError, match=f"{source}: not the published file: 7 b") as caught:
        fetch(thing(SHA256), tmp_path / "data", source=source)
    assert caught.value.fix == "name the right file"
    assert source.read_bytes() == b"another"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet18", "did you mean resnet18-f37072fd.pth? see"),
        ("fashion-mnist", "did you mean fashion_mnist? see"),
        ("flowers102.tgz", "did you mean flowers? see"),
        ("resnet50.pth", "did you mean resnet50-11ad3fa6.pth? see"),
        ("photos", "see"),
    ],
)
def test_a_name_that_is_nearly_right_is_corrected(name, hint):
    with pytest.raises(ParamsError, match="nothing is called") as caught:
        fetch_by_name(name, Path(), source=None, sha256=None)
    assert caught.value.fix == f"{hint} what there is: resnets fetch"


def test_the_debian_package_passes_and_can_be_opened(tmp_path):
    folder = Path("/usr/share/datasets/fashion-mnist")
    if not folder.is_dir():
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    fetch_by_name("fashion_mnist", tmp_path, source=folder, sha256=None)
    source = open_source(tmp_path / "raw/fashion_mnist")
    assert "T-shirt/top" in source.classes
    assert len(source.members) == 70_000


def test_the_table_is_complete_and_https_only():
    assert DATASETS.keys() < all_items().keys()
    for item in all_items().values():
        assert item.licence
        assert item.citation
        for url, sha256 in item.files.items():
            assert url.startswith("https://")
            assert len(sha256) in (0, 8, 64)
    assert [*all_items()["resnet18-f37072fd.pth"].files.values()] == ["f37072fd"]
    with pytest.raises(ParamsError, match="nothing is called 'imagenet'"):
        fetch_by_name("imagenet", Path(), source=None, sha256=None)


def test_list_has_a_line_for_each_and_says_the_rest_on_request():
    lines = CliRunner().invoke(app, ["fetch"]).output.splitlines()
    assert [line.split()[0] for line in lines] == list(all_items())
    assert lines[0].split()[1:] == ["31", "MB", "MIT"]
    shown = CliRunner().invoke(app, ["fetch", "hymenoptera", "--about"]).output
    for word in ("47 MB", "Chilamkurthy", "https://", "give --sha256"):
        assert word in shown


def test_sizes_of_weights_are_torchvisions():
    sizes = {}
    for name in {row.partition("-")[0] for row in PUBLISHED} & set(list_models()):
        for weights in get_model_weights(name):
            sizes[weights.url.rpartition("/")[2]] = weights.meta["_file_size"]
    assert len(sizes) > 15
    for name, size in sizes.items():
        assert all_items()[name].megabytes == pytest.approx(size, abs=1)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    """Make a key and a certificate for 127.0.0.1 that only these tests trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    start = datetime.datetime(2020, 1, 1)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=36_500))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + signed.public_bytes(serialization.Encoding.PEM)
    )
    return path


class Handler(http.server.BaseHTTPRequestHandler):
    """Serve CONTENT: whole or from where it is asked, cut, redirected or not at all."""

    seen: list[str]
    plain: str  # an address that is not https

    def do_GET(self) -> None:
        self.seen.append(self.headers.get("Range", ""))
        if self.path == "/downgrade":
            self.send_response(302)
            self.send_header("Location", self.plain)
            self.end_headers()
        elif self.path == "/missing":
            self.send_error(404)
        else:
            start = int(self.headers.get("Range", "bytes=0-")[6:-1])
            if start >= len(CONTENT):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            length = len(CONTENT) - start
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(CONTENT[start:][: length // 2 if self.path == "/cut" else length])

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


class Server(http.server.ThreadingHTTPServer):
    """Serve without a word about clients that hang up, as the tests make them do."""

    def handle_error(self, *_: object) -> None:
        """Stay quiet."""


@contextlib.contextmanager
def serving(certificate: Path | None) -> Iterator[int]:
    """Serve on a port of this machine: https where there is a certificate, else plain http."""
    running = Server(("127.0.0.1", 0), Handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        running.socket = context.wrap_socket(running.socket, server_side=True)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield running.server_port
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture
def server(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    Handler.seen = []
    with serving(certificate) as port:
        yield f"https://127.0.0.1:{port}"


def test_a_broken_download_continues_where_it_stopped(tmp_path, server):
    part = tmp_path / "thing.zip.part"
    with pytest.raises(EnvironmentFault, match="ended after 512000 of 1024000 bytes"):
        download(f"{server}/cut", part)
    download(f"{server}/thing.zip", part)
    assert part.read_bytes() == CONTENT
    assert Handler.seen == ["bytes=0-", "bytes=512000-"]


def test_a_part_that_is_complete_is_left_to_its_checksum(tmp_path, server):
    part = tmp_path / "thing.zip.part"
    part.write_bytes(CONTENT)
    download(f"{server}/thing.zip", part)
    assert part.read_bytes() == CONTENT
    assert Handler.seen == ["bytes=1024000-"]


def test_a_missing_file_is_an_error_that_names_the_way_without_a_network(tmp_path, server):
    with pytest.raises(EnvironmentFault, match="404") as caught:
        download(f"{server}/missing", tmp_path / "x.part")
    assert "--from" in caught.value.fix


def test_plain_http_is_refused_also_after_a_redirect(tmp_path, server):
    with serving(None) as port:
        Handler.plain = f"http://127.0.0.1:{port}/thing.zip"
        for url in (Handler.plain, f"{server}/downgrade"):
            with pytest.raises(EnvironmentFault, match="which is not https"):
                download(url, tmp_path / "x.part")
    assert not (tmp_path / "x.part").exists()


def test_a_machine_without_a_network_is_told_so(tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    url = "https://nowhere.invalid/thing.zip"
    with pytest.raises(EnvironmentFault) as caught:
        download(url, tmp_path / "thing.zip.part")
    assert caught.value.what == f"{url}: no network? (Name or service not known)"


def test_a_stranger_and_a_closed_port_are_refused(tmp_path, server, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(EnvironmentFault, match="certificate"):
        download(f"{server}/thing.zip", tmp_path / "x.part")
    with pytest.raises(EnvironmentFault) as caught:
        download("https://127.0.0.1:1/thing.zip", tmp_path / "thing.zip.part")
    assert "get thing.zip by other means and name it with --from" in caught.value.fix
