"""The scripts of docs/cluster.md, run as they stand there with SLURM's variables, several processes each, one of them lost.

SLURM itself is not here: `sbatch --array` is one `bash` for each task, `srun` a script that starts the tasks.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from zeus_union.cache.reader import Cache
from zeus_union.cache.status import read_status
from zeus_union.cache.verify import verify
from zeus_union.stage1_instruct.phantom.write import write_demo

ROOT = Path(__file__).parents[3]
SCRIPTS = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", (ROOT / "docs" / "cluster.md").read_text(), flags=re.DOTALL)

# The command, which writes down whose slices it writes; the first process that has one in work dies there, if told so.
# With `NO_LOCKS` it is on a disk without locks. It is imported once: every call is a fork of this server.
SERVER = """
import errno, json, os, signal, socket, sys
from pathlib import Path
from zeus_union.cache import locks
from zeus_union.cache.writer import CacheWriter
from zeus_union.stage1_instruct.building import loop
from zeus_union.stage1_instruct.cli import main
from zeus_union.stage1_instruct.weights import fetch

write_slices = CacheWriter.write_slices

def refuse(*_):
    raise OSError(errno.ENOLCK, "no locks")

def written_down(writer, subject, slices):
    log = Path(os.environ["LOG"])
    with open(log, "a") as file:
        file.write(subject + chr(10))
    if "LOSE" in os.environ:
        try:
            os.close(os.open(log.with_suffix(".lost"), os.O_CREAT | os.O_EXCL))
            os.kill(os.getpid(), signal.SIGKILL)
        except FileExistsError:
            pass
    write_slices(writer, subject, slices)

CacheWriter.write_slices = written_down

def run(request, output):
    for number, fd in zip((1, 2), output):
        os.dup2(fd, number)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if "NO_LOCKS" in os.environ:
        locks._lock = refuse
    try:
        main(request["arguments"], standalone_mode=True)
        return 0
    except SystemExit as end:
        return int(end.code or 0)

server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
print("ready", flush=True)
while True:
    connection, _ = server.accept()
    if os.fork():
        connection.close()
        continue
    message, output, _, _ = socket.recv_fds(connection, 1 << 20, 2)
    child = os.fork()
    if not child:
        os._exit(run(json.loads(message), output))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    connection.sendall(str(code).encode())
    os._exit(0)
"""

CLIENT = """
import json, os, signal, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
request = {"arguments": sys.argv[2:], "folder": os.getcwd(), "environment": dict(os.environ)}
socket.send_fds(connection, [json.dumps(request).encode()], [1, 2])
code = int(connection.recv(100))
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
"""

SRUN = """#!/bin/bash
[[ " $* " == *" --kill-on-bad-exit=0 --no-kill "* ]] || exit 9   # else the others would be ended too
while [[ $1 == --* ]]; do shift; done
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_STEP_NUM_TASKS=$SLURM_NTASKS "$@" &
done
wait
"""


def script(name: str) -> str:
    return next(text for text in SCRIPTS if f"# {name}" in text)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "nnunet"
    write_demo("nnunet", root, subjects=4, seed=3)
    return root


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a `SERVER`."""
    address = tmp_path_factory.mktemp("server") / "socket"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SERVER, str(address)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    yield address
    process.kill()
    process.wait()


@pytest.fixture
def environment(server: Path, data: Path, tmp_path: Path, tiny_parts: dict[str, str]) -> dict[str, str]:
    """`zeus-instruct` and `srun` on the PATH, and the `$BUILD` that the scripts take."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (tmp_path / "client.py").write_text(CLIENT)
    client = shlex.join([sys.executable, "-S", "-E", str(tmp_path / "client.py"), str(server)])
    for name, text in {"zeus-instruct": f'#!/bin/bash\nexec {client} "$@"\n', "srun": SRUN}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    build = f"--dataset nnunet --data-root {data} --out {tmp_path / 'a.h5'} --layers slices --slice-step 4 --device cpu"
    build += "".join(f" --set {part}={value}" for part, value in tiny_parts.items())
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("SLURM_")},
        "PATH": f"{programs}:{os.environ['PATH']}",
        "BUILD": build,
        "LOG": str(tmp_path / "log"),
    }


def start(name: str, environment: dict[str, str], folder: Path, **more: str) -> subprocess.Popen[str]:
    text = script(name)
    return subprocess.Popen(
        ["bash", "-c", text], env={**environment, **more}, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )  # fmt: skip


def array(name: str, environment: dict[str, str], folder: Path, tasks: int) -> list[subprocess.Popen[str]]:
    """What `sbatch` does with a script of `#SBATCH --array=1-tasks`."""
    assert "#SBATCH --array=1-8\n" in script(name)
    shared = {"SLURM_ARRAY_JOB_ID": "88", "SLURM_ARRAY_TASK_COUNT": str(tasks)}
    shared |= {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": str(tasks)}
    return [start(name, environment, folder, **shared, SLURM_ARRAY_TASK_ID=str(task)) for task in range(1, tasks + 1)]


def assert_built_with_one_subject_lost(folder: Path) -> None:
    """The cache is whole, and one subject was in work twice: that of the process that was lost."""
    assert verify(folder / "a.h5") == []
    with Cache(folder / "a.h5") as cache:
        subjects = set(cache.subjects)
    in_work = (folder / "log").read_text().split()
    assert len(subjects) == 4 and set(in_work) == subjects and len(in_work) == 5
    assert read_status(folder / "a.h5").complete


@pytest.mark.slow
def test_in_a_job_array_a_lost_task_costs_its_subject(environment: dict[str, str], tmp_path: Path) -> None:
    tasks = array("build.sbatch", environment | {"LOSE": "1"}, tmp_path, 2)
    codes = {task.wait(timeout=120) for task in tasks}
    assert codes == {0, -signal.SIGKILL}, [task.communicate() for task in tasks]
    assert_built_with_one_subject_lost(tmp_path)


@pytest.mark.slow
def test_of_several_tasks_of_a_job_a_lost_one_costs_its_subject(environment: dict[str, str], tmp_path: Path) -> None:
    job = start("tasks.sbatch", environment, tmp_path, SLURM_JOB_ID="89", SLURM_NTASKS="2", LOSE="1")
    _, said = job.communicate(timeout=120)
    assert job.returncode == 0, said
    assert_built_with_one_subject_lost(tmp_path)


@pytest.mark.slow
def test_by_hand_a_lost_process_costs_its_subject(environment: dict[str, str], tmp_path: Path) -> None:
    loop = start("hand.sh", environment, tmp_path, GPUS="0 1", LOSE="1")
    _, said = loop.communicate(timeout=120)
    assert loop.returncode == 0, said
    assert len(list(tmp_path.glob("zeus-*-[01].log"))) == 2
    assert_built_with_one_subject_lost(tmp_path)


@pytest.mark.slow
def test_without_locks_an_array_builds_its_parts_and_a_last_job_finishes(
    environment: dict[str, str], tmp_path: Path
) -> None:
    environment |= {"NO_LOCKS": "1"}
    tasks = array("parts.sbatch", environment, tmp_path, 2)
    assert [task.wait(timeout=120) for task in tasks] == [0, 0], [task.communicate() for task in tasks]
    finish = start("finish.sbatch", environment, tmp_path)
    _, said = finish.communicate(timeout=120)
    assert finish.returncode == 0, said
    with Cache(tmp_path / "a.h5") as cache:
        assert len(cache.subjects) == 4
    assert sorted((tmp_path / "log").read_text().split()) == sorted(cache.subjects)
    assert verify(tmp_path / "a.h5") == []


def test_every_script_of_the_page_is_run_here() -> None:
    names = {
        match[1] for text in SCRIPTS for match in re.finditer(r"^# (\w+\.(?:sbatch|sh))", text, flags=re.MULTILINE)
    }
    assert len(SCRIPTS) == len(names) == 5
    assert all(f'"{name}"' in Path(__file__).read_text() for name in names)
