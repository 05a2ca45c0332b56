"""Take away what one system lacks, and see that the others' way is gone."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from resnets.system.errors import ParamsError
from resnets.system.runtime import (
    StopRequest,
    memory_left,
    num_cores,
    resolve_device,
    resolve_precision,
    resolve_threads,
)
from tests.bundles import make_trained

ROOT = Path(__file__).parents[2]

# what Python has on a Mac, as far as Linux can show it
MAC = """
import os
del os.sched_getaffinity, os.sysconf_names["SC_AVPHYS_PAGES"]
ask = os.sysconf
def sysconf(name):
    if name not in os.sysconf_names:
        raise ValueError("unrecognized configuration name")
    return ask(name)
os.sysconf = sysconf
"""
WINDOWS = """
import os, signal, sys
sys.modules["fcntl"] = sys.modules["resource"] = None
del os.sched_getaffinity, os.sysconf, os.sysconf_names, os.getuid, signal.SIGHUP
"""


def run_on(system: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python where the system's gaps are, in a folder."""
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site/sitecustomize.py").write_text(system)
    path = os.pathsep.join([str(folder / "site"), str(ROOT / "src"), str(ROOT)])
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


# A Mac


def test_a_mac_predicts_and_says_how_much_memory_it_has(tmp_path):
    make_trained(tmp_path, num=40)
    predict = "predict", "photos", "--model", "model.safetensors", "--output", "answers.csv"
    done = run_on(MAC, tmp_path, "-m", "resnets.cli", *predict)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "answers.csv").read_text().splitlines()) == 41
    hungry = "from resnets.system.errors import run_app; run_app(lambda: bytearray(10**15))"
    done = run_on(MAC, tmp_path, "-c", hungry)
    assert done.returncode == 5
    assert "out of memory" in done.stderr
    assert "bytes are there in all" in done.stderr


def test_memory_is_what_linux_says_is_free():
    free = int(memory_left().split()[0].replace(",", ""))
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    assert free == pytest.approx(int(lines["MemFree"].split()[0]) * 1024, rel=0.2)
    assert memory_left().endswith("bytes of this machine are free")


# Windows


@pytest.mark.parametrize(
    "arguments",
    [["resnets.cli", "check", "photos"], ["resnets.stages.split", "target", "--task", "task"]],
)
def test_windows_itself_is_told_of_wsl(tmp_path, arguments):
    done = run_on(WINDOWS, tmp_path, "-m", *arguments)
    assert done.returncode == 5
    what, fix = done.stderr.splitlines()
    assert what == "error: Windows itself is not supported: it has no fcntl, which locks files"
    assert fix == "fix: run the same command inside WSL (wsl --install)"


def test_without_sighup_the_other_signals_still_stop_a_run(monkeypatch):
    monkeypatch.delattr(signal, "SIGHUP")
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set()
    assert signal.getsignal(signal.SIGTERM) == before
    assert stop.error("x").exit_code == 143


# Cores


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return what writes the description of 16 CPUs, so many of them to a core."""
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 16)

    def describe(threads: int, group: str = "/") -> Path:
        cores = 16 // threads
        for cpu in range(16):
            siblings = ",".join(str(cpu % cores + cores * thread) for thread in range(threads))
            folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
            write(folder / "thread_siblings_list", siblings)
        write(tmp_path / "proc/self/cgroup", f"4:cpu,cpuacct:{group}\n0::{group}")
        return tmp_path

    return describe


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


@pytest.mark.parametrize(("threads", "cores"), [(1, 16), (2, 8), (16, 1)])
def test_the_threads_of_a_core_count_once(machine, threads, cores):
    assert num_cores(machine(threads)) == cores


def test_without_a_topology_every_cpu_is_a_core(machine, tmp_path):
    assert num_cores(tmp_path) == 16


@pytest.mark.parametrize(
    ("limits", "cores"),
    [
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "350000 100000"}, 3),
        ({"cpu.max": "50000 100000"}, 1),  # half a CPU still computes
        ({"a/cpu.max": "1200000 100000"}, 8),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000"}, 2),
        ({"other/cpu.max": "200000 100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/a/b/cpu.cfs_quota_us": "250000", "cpu/a/b/cpu.cfs_period_us": "50000"}, 5),
    ],
)
def test_a_containers_quota_is_no_more_cores_than_it_pays_for(machine, limits, cores):
    root = machine(2, group="/a/b")
    for name, text in limits.items():
        write(root / "sys/fs/cgroup" / name, text)
    assert num_cores(root) == cores


def test_only_cpus_that_this_process_may_use_count():
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert num_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({}, 1),
        ({"WORLD_SIZE": "2"}, 2),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "2"}, 2),  # on four machines
        ({"WORLD_SIZE": "1000"}, 1000),
    ],
)
def test_auto_is_a_processs_share_of_the_cores_and_a_number_stays(monkeypatch, environment, share):
    for key in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(key, raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert resolve_threads("auto") == max(1, num_cores() // share)
    assert resolve_threads(3) == 3


# Devices


def test_auto_takes_a_device_that_there_is_and_no_other_is_taken():
    assert resolve_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ParamsError, match="torch finds no device mps for this process"):
        resolve_device("mps")
    with pytest.raises(ParamsError, match="there is no device 'tpu'") as caught:
        resolve_device("tpu")
    assert caught.value.fix == "take auto, cpu, cuda or mps"


def test_on_mps_auto_means_fp32_because_torch_does_not_say_where_bf16_is_native():
    assert resolve_precision("auto", "mps") == "fp32"
    assert resolve_precision("bf16", "mps") == "bf16"
