"""A real SLURM on this machine for tests: one node on the loopback interface, with one GPU that is none.

`python tests/slurm/cluster.py` installs Debian's packages for it, where one is root and there is apt-get.
"""

import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

PACKAGES = ("munge", "slurmctld", "slurmd", "slurm-client")
SYSTEM_CONF = Path("/etc/slurm/slurm.conf")  # Snakemake's jobs take SLURM_CONF out of their environment
POLICY = Path("/usr/sbin/policy-rc.d")
PORTS = {"slurmctld": 16817, "slurmd": 16818}

CONF = """\
ClusterName=quantwatt
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={slurmctld}
SlurmdPort={slurmd}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=bf_interval=1,sched_interval=5
MpiDefault=none
ReturnToService=2
KillWait=5
MinJobAge=3600
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory_mb} Gres=gpu:1 State=UNKNOWN
PartitionName=test Nodes={host} Default=YES DefaultTime=10 MaxTime=INFINITE State=UP
"""
GRES = "AutoDetect=off\nNodeName={host} Name=gpu File=/dev/null\n"  # without a file a GPU is dropped


def obstacle():
    """Why there can be no cluster here, in a sentence, or None."""
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(name, path=_path())]
    if os.geteuid() != 0:
        return "SLURM's daemons start as root"
    if missing:
        return f"SLURM is not installed ({', '.join(missing)}): make slurm"
    if os.path.lexists(SYSTEM_CONF):
        return f"this machine has a SLURM of its own ({SYSTEM_CONF})"
    return None


def install():
    """Install the packages, and keep them from starting daemons of their own meanwhile; without a network, say so."""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return
    if subprocess.run(["dpkg", "-s", *PACKAGES], capture_output=True).returncode == 0:
        return
    forbids = not POLICY.exists()
    if forbids:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
            subprocess.run(["apt-get", *command], check=True, env=environment)
    except subprocess.CalledProcessError as error:
        print(f"SLURM is not installed, and its tests will be skipped: {error}")
    finally:
        if forbids:
            POLICY.unlink()


class Cluster:
    """A running SLURM, between `start` and `stop`; all that it writes is in a folder of its own but for SYSTEM_CONF.

    Args:
        cpus: how many the node claims to have, so that jobs wait for its GPU and not for them.
        memory_mb: likewise its memory.
    """

    def __init__(self, cpus=8, memory_mb=16000):
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # a short path: munge's socket has at most 107 letters
        self.folder.chmod(0o755)
        self.daemons = {}
        host = os.uname().nodename.split(".")[0]
        fields = {"host": host, "folder": self.folder, "cpus": cpus, "memory_mb": memory_mb, **PORTS}
        (self.folder / "slurm.conf").write_text(CONF.format(**fields))
        (self.folder / "gres.conf").write_text(GRES.format(**fields))
        (self.folder / "munge.key").write_bytes(os.urandom(1024))
        (self.folder / "munge.key").chmod(0o400)
        for name in ("state", "spool"):
            (self.folder / name).mkdir(mode=0o755)

    def start(self):
        """Start the daemons and wait until a job runs; a RuntimeError quotes their logs if none does."""
        SYSTEM_CONF.parent.mkdir(exist_ok=True)
        SYSTEM_CONF.symlink_to(self.folder / "slurm.conf")
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed"}
        options = [f"--{option}={self.folder}/munge.{end}" for option, end in files.items()]
        self._start("munged", "--foreground", *options)
        self.wait_for((self.folder / "munge.socket").exists, "munge's socket")
        self.start_controller()
        self._start("slurmd", "-D", "-f", self.folder / "slurm.conf")
        self.wait_for(lambda: self.ask("sinfo", "-h", "-o", "%T").strip() == "idle", "an idle node")
        assert self.ask("srun", "--gpus=1", "printenv", "CUDA_VISIBLE_DEVICES").strip() == "0"

    def stop(self):
        """End all jobs and daemons, and remove what was written."""
        try:
            if "slurmd" in self.daemons:
                if "slurmctld" not in self.daemons:  # a test failed during an outage
                    self.start_controller()
                self.ask("scancel", "--full", "--partition=test")
                self.wait_for(lambda: not self.ask("squeue", "-h"), "jobs to end")
        finally:
            for name in list(self.daemons):
                self._stop(name)
            if SYSTEM_CONF.is_symlink() and SYSTEM_CONF.readlink() == self.folder / "slurm.conf":
                SYSTEM_CONF.unlink()
            shutil.rmtree(self.folder, ignore_errors=True)

    def start_controller(self):
        self._start("slurmctld", "-D", "-f", self.folder / "slurm.conf")

    def stop_controller(self):
        """What an outage of the cluster's controller is: running jobs go on, nobody is answered."""
        self._stop("slurmctld")

    def ask(self, *command):
        """What one of SLURM's commands prints, or nothing where it failed."""
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=self.environment).stdout

    @property
    def environment(self):
        return os.environ | {"PATH": _path(), "USER": "root"}

    def jobs(self):
        """What SLURM knows of its jobs since it was started; a list of {field of `scontrol show job`: text}."""
        lines = self.ask("scontrol", "show", "job", "--oneliner").splitlines()
        return [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in lines if line.startswith("JobId=")]

    def job_of(self, rule, state):
        """The number of a job of a rule in a state, or None."""
        found = [
            job["JobId"] for job in self.jobs()
            if job["JobState"] == state and re.fullmatch(f"rule_{rule}(_wildcards_.*)?", job.get("Comment", ""))
        ]  # fmt: skip
        return found[-1] if found else None

    def wait_for(self, condition, what, seconds=60):
        """The first true value of a condition; a RuntimeError after some seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if value := condition():
                return value
            time.sleep(0.25)
        raise RuntimeError(f"no {what} after {seconds} s; {self._logs()}")

    def _start(self, name, *options):
        log = (self.folder / f"{name}.log").open("a")
        # A daemon ends with the tests, however they end.
        command = ["setpriv", "--pdeathsig", "TERM", name, *map(str, options)]
        self.daemons[name] = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment, start_new_session=True
        )

    def _stop(self, name):
        daemon = self.daemons.pop(name)
        daemon.terminate()
        try:
            daemon.wait(15)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def _logs(self):
        return "\n".join(f"{log.name}: {log.read_text()[-1500:]}" for log in self.folder.glob("*.log"))


def _path():
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


if __name__ == "__main__":
    install()
