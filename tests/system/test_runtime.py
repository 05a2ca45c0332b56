"""Cores, threads, devices and precision, compared with what the system's own tools say."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from resnets.system.errors import ParamsError
from resnets.system.runtime import (
    allowed_cpus,
    num_cores,
    resolve_device,
    resolve_precision,
    resolve_threads,
)


def test_the_threads_of_a_core_count_once():
    if not shutil.which("lscpu"):
        pytest.skip("no lscpu, which lists the cores")
    table = subprocess.run(["lscpu", "-p=CPU,CORE"], capture_output=True, text=True, check=True)
    cores = dict(line.split(",") for line in table.stdout.splitlines() if line[0] != "#")
    assert num_cores() <= len({cores[str(cpu)] for cpu in allowed_cpus()})


def test_only_cpus_that_this_process_may_use_count():
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert (num_cores(), len(allowed_cpus())) == (1, 1)
    finally:
        os.sched_setaffinity(0, allowed)


def test_a_mac_binds_no_process_and_has_one_thread_per_core(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    assert allowed_cpus() == list(range(os.cpu_count()))


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


def test_auto_takes_a_device_that_there_is_and_no_other_is_taken():
    present = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    assert resolve_device("auto") == present[0]
    for device in ("mps", "tpu"):
        with pytest.raises(ParamsError, match=f"torch finds no device '{device}'") as caught:
            resolve_device(device)
        assert caught.value.fix.endswith(", ".join(present))


@pytest.mark.skipif(sys.platform != "linux", reason="the flags are those of Linux")
def test_on_a_cpu_auto_means_bf16_where_torch_finds_amx_or_an_amd_with_avx512s():
    is_amd = "AMD" in subprocess.check_output(["lscpu"], text=True)
    is_faster = torch.cpu._is_amx_tile_supported() or (
        is_amd and torch.cpu._is_avx512_bf16_supported()
    )
    assert resolve_precision("auto", "cpu") == ("bf16" if is_faster else "fp32")


def test_on_mps_auto_means_fp32_because_torch_does_not_say_where_bf16_is_faster():
    assert resolve_precision("auto", "mps") == "fp32"
    assert resolve_precision("bf16", "mps") == "bf16"
