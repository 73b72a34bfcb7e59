"""Run a command on a real Slurm with two nodes, alone in its namespaces.

    python tests/support/slurm_cluster.py FOLDER COMMAND…

Both nodes are this machine, on a loopback network of their own; when the command ends, all daemons end with the
namespace. Needs root and Debian's slurmctld, slurmd, slurm-client, munge and iproute2. Partition `main`, and
`high`, whose jobs preempt those of `main` after 15 seconds of grace. No accounting: `sacct` fails.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

INSIDE = "SLURM_CLUSTER_INSIDE"
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "unshare", "ip")
NAMESPACES = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={munge}/socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
KillWait=5
MinJobAge=300
ReturnToService=2
MailProg=/bin/true
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port=16818 CPUs=1 RealMemory=8000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port=16828 CPUs=1 RealMemory=8000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=15 State=UP
PartitionName=high Nodes=n1,n2 MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP
"""


def missing() -> str | None:
    """Why no cluster can be started here, if it cannot."""
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if absent:
        return f"no {', '.join(absent)}"
    probe = subprocess.run([*NAMESPACES, "true"], capture_output=True, text=True, check=False)
    return None if probe.returncode == 0 else f"no namespaces: {probe.stderr.strip()}"


def start(folder: Path) -> None:
    """Inside the namespaces: network, authentication, controller and both nodes."""
    for name in ("state", "spool", "log"):
        (folder / name).mkdir(parents=True)
    munge = Path(
        tempfile.mkdtemp(prefix="munge-")
    )  # munged wants all folders above its socket open to everybody
    munge.chmod(0o755)
    _run("ip", "link", "set", "lo", "up")
    # The resolver wants one address besides the loopback's; nothing is sent to it.
    _run("ip", "link", "add", "dummy0", "type", "bridge")
    _run("ip", "address", "add", "169.254.9.1/32", "dev", "dummy0")
    _run("ip", "link", "set", "dummy0", "up")
    hosts = folder / "hosts"
    hosts.write_text(Path("/etc/hosts").read_text() + "127.0.0.1 n1 n2\n")
    _run("mount", "--bind", str(hosts), "/etc/hosts")
    (munge / "key").write_bytes(secrets.token_bytes(1024))
    (munge / "key").chmod(0o600)
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    _run("munged", *(f"--{option}={munge / name}" for option, name in files.items()))
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(folder=folder, munge=munge, host=socket.gethostname())
    )
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    _run("slurmctld", "-i")
    _run("slurmd", "-N", "n1")
    _run("slurmd", "-N", "n2")
    for _ in range(300):
        states = subprocess.run(
            ["sinfo", "--noheader", "--Node", "--partition=main", "--format=%T"],
            capture_output=True,
            text=True,
            check=False,
        )
        if states.stdout.split() == ["idle", "idle"]:
            return
        time.sleep(0.1)
    logs = "\n".join(path.read_text()[-2000:] for path in sorted((folder / "log").iterdir()))
    raise SystemExit(f"Slurm has not come up:\n{logs}")


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def main() -> None:
    folder, *command = sys.argv[1:]
    if INSIDE not in os.environ:
        os.environ[INSIDE] = "1"
        os.execvp(NAMESPACES[0], [*NAMESPACES, sys.executable, __file__, folder, *command])
    start(Path(folder))
    raise SystemExit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
