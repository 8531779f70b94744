"""What the machine gives a process: cores, how OpenMP's threads wait, bfloat16, and denormal numbers."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cache_tools import RdkitSamples, cores, flush_denormals, threads
from cache_tools.machine import SPINS, affinity, bf16_instructions, others_running, prepare_openmp, quota
from cache_tools.teachers import gnn


def python(code: str, **environment: str) -> str:
    """What a new process of this code prints; it has none of our variables of OpenMP."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    done = subprocess.run([sys.executable, "-c", code], env=kept | environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


# --------------------------------------------------------------------------------------------------------- cores


def groups(folder, own: str, **files: str):
    """A tree of control groups, and the file that names those of a process."""
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(path.name.replace("cpu_max", "cpu.max").replace("cpu_cfs", "cpu.cfs")).write_text(content)
    (folder / "own").write_text(own)
    return quota(folder, folder / "own")


def test_the_least_quota_of_version_2_counts_on_the_way_to_the_root(tmp_path):
    assert groups(tmp_path, "0::/slice/job\n", slice__cpu_max="150000 100000\n", slice__job__cpu_max="max 100000\n") == 1.5
    assert groups(tmp_path, "0::/slice/job\n", slice__job__cpu_max="50000 100000\n") == 0.5


def test_a_container_sees_its_own_quota_at_the_root(tmp_path):
    assert groups(tmp_path, "0::/docker/of/the/host\n", cpu_max="200000 100000\n") == 2


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_a_quota_of_version_1_is_found(tmp_path, mount):
    files = {f"{mount}__job__cpu_cfs_quota_us": "300000\n", f"{mount}__job__cpu_cfs_period_us": "100000\n"}
    assert groups(tmp_path, "5:memory:/job\n4:cpuset:/\n3:cpu,cpuacct:/job\n0::/\n", **files) == 3


def test_no_quota_is_no_limit(tmp_path):
    files = {"cpu__cpu_cfs_quota_us": "-1\n", "cpu__cpu_cfs_period_us": "100000\n", "cpu_max": "max 100000\n"}
    assert groups(tmp_path, "1:cpu:/\n0::/\n", **files) == float("inf")
    assert quota(tmp_path, tmp_path / "missing") == float("inf")
    assert 1 <= cores() <= affinity()


def test_processes_share_the_cores_and_a_users_number_of_threads_wins():
    code = "from cache_tools import cores, threads; print(cores(), threads(), threads(1000))"
    count, alone, many = map(int, python(code).split())
    assert (alone, many) == (count, 1)
    assert python(code, OMP_NUM_THREADS="7").split()[1:] == ["7", "7"]
    assert threads() >= 1


# ------------------------------------------------------------------------------------------------------- waiting


def prepared(usable: int, running: int, monkeypatch, **given: str) -> dict[str, str]:
    """The variables of OpenMP after `prepare_openmp` in a process without torch, on a machine of four processors."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr("cache_tools.machine.affinity", lambda: 4)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    prepare_openmp(given, lambda: usable, lambda: running)
    return given


def test_a_quiet_machine_waits_as_libgomp_wants(monkeypatch):
    assert prepared(4, 0, monkeypatch) == {}


def test_threads_without_a_core_of_their_own_soon_sleep(monkeypatch):
    assert prepared(4, 1, monkeypatch) == {"GOMP_SPINCOUNT": SPINS}


def test_threads_follow_a_quota(monkeypatch):
    assert prepared(2, 0, monkeypatch) == {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": SPINS}
    assert prepared(1, 5, monkeypatch) == {"OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_a_users_own_way_of_waiting_wins(monkeypatch, name):
    assert prepared(4, 9, monkeypatch, **{name: "5"}) == {name: "5"}


def test_a_users_own_number_of_threads_wins(monkeypatch):
    assert prepared(2, 9, monkeypatch, OMP_NUM_THREADS="3") == {"OMP_NUM_THREADS": "3", "GOMP_SPINCOUNT": SPINS}
    assert prepared(4, 9, monkeypatch, OMP_NUM_THREADS="1") == {"OMP_NUM_THREADS": "1"}


def test_both_commands_prepare_openmp_before_they_import_torch():
    code = "import sys, cache_tools; cache_tools.start_console(); print('torch' in sys.modules)"
    assert python(code) == "False"
    seen = "import cache_tools.machine as m; m.others_running.__defaults__ = None; m.prepare_openmp.__defaults__ = ("
    seen += "m.os.environ, m.affinity, lambda: 99); import cache_tools; cache_tools.start_console(); import os; "
    assert python(seen + "print(os.environ.get('GOMP_SPINCOUNT'))") == (SPINS if affinity() > 1 else "None")


def test_other_threads_that_run_are_counted(tmp_path):
    (tmp_path / "loadavg").write_text("0.20 0.18 0.12 4/80 11206\n")
    assert others_running(tmp_path / "loadavg") == 3
    assert others_running(tmp_path / "missing") == 0
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    try:
        assert others_running(looks=20) >= 1
    finally:
        for process in busy:
            process.kill()
            process.wait()


# ------------------------------------------------------------------------------------------------------ bfloat16


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("flags\t\t: fpu avx512_bf16 amx_bf16 amx_tile", "amx_bf16"),
        ("flags\t\t: fpu avx512f avx512_bf16", "avx512_bf16"),
        ("Features\t: fp asimd bf16 i8mm", "bf16"),
        ("flags\t\t: fpu avx2", ""),
    ],
)
def test_the_processors_bfloat16_is_found_by_its_name(tmp_path, line, name):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\nbugs\t\t: none\n")
    assert bf16_instructions(tmp_path / "cpuinfo") == name
    assert bf16_instructions(tmp_path / "missing") == ""


# ----------------------------------------------------------------------------------------------------- denormals


@pytest.fixture
def _as_before():
    """Denormal numbers count again afterwards."""
    torch.set_flush_denormal(False)
    yield
    torch.set_flush_denormal(False)


COMPUTES = """
import threading, torch
from cache_tools import flush_denormals

torch.set_num_threads(2)
flush_denormals()
small = torch.full((1024, 1024), 1e-22)  # products of two are denormal

def product():
    print((small @ small).eq(0).all().item())

product()
thread = threading.Thread(target=product)
thread.start()
thread.join()
x = small.clone().requires_grad_()
(x @ small).backward(small)
print(x.grad.eq(0).all().item())
"""


@pytest.mark.usefixtures("_as_before")
def test_threads_of_openmp_and_of_python_and_the_backward_pass_flush_denormals():
    assert python(COMPUTES).split() == ["True"] * 3
    small = torch.full((64, 64), 1e-22)
    assert not (small @ small).eq(0).any()  # here, where nothing flushed them


def with_denormals(path, share: float = 0.3) -> None:
    """A file with a small GCN, a part of whose weights is denormal."""
    torch.manual_seed(0)
    state = gnn._Gnn(gnn.GcnLayer, 120).state_dict()
    for name, value in state.items():
        if name.endswith("linear.weight"):
            value[torch.rand_like(value) < share] = 3e-40
    save_file(state, path, {"kind": "gcn"})


def both_ways(teacher: gnn.PretrainedGnn) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of real molecules, with denormal numbers and with zeros for them."""
    teacher.load("cpu")
    rows = [teacher.prepare(item) for item in RdkitSamples(limit=60).read()[1]]
    torch.set_flush_denormal(False)
    exact = teacher.embed(rows)
    flush_denormals()
    return exact, teacher.embed(rows)


@pytest.mark.usefixtures("_as_before")
def test_a_network_with_denormal_weights_gives_the_same_embeddings_when_they_are_flushed(tmp_path):
    with_denormals(tmp_path / "gcn.safetensors")
    teacher = gnn.PretrainedGnn(str(tmp_path / "gcn.safetensors"))
    exact, flushed = both_ways(teacher)
    weights = [value for value in teacher.network.state_dict().values() if value.is_floating_point()]
    torch.set_flush_denormal(False)
    assert sum(int(((value != 0) & (value.abs() < 1e-38)).sum()) for value in weights) > 1000
    np.testing.assert_allclose(flushed, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.workplace
@pytest.mark.usefixtures("_as_before")
def test_molclr_gives_the_same_embeddings_when_its_denormal_weights_are_flushed(shared):
    exact, flushed = both_ways(gnn.MolClrGcn(str(shared / "weights/mol/molclr_gcn.safetensors")))
    assert np.isfinite(exact).all()
    np.testing.assert_allclose(flushed, exact, rtol=1e-6, atol=1e-6)
