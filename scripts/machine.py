"""What the machines of scripts/vm and scripts/container have in common: Debian 12 with systemd and Docker, made once
from Debian's packages, which runs one command when it has booted and then shuts down in the regular way.
"""

import hashlib
import os
import pathlib
import selectors
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))

SUITE = "bookworm"
# What boots; Docker, for the drill; what a test's script is likely to want.
PACKAGES = ["systemd", "systemd-sysv", "dbus", "docker.io", "iptables", "iproute2", "procps", "curl", "busybox-static"]

RUNNER = """\
[Unit]
Description=the command that this machine was booted for
After=multi-user.target

[Service]
Type=exec
ExecStart=/usr/local/sbin/machine-run

[Install]
WantedBy=multi-user.target
"""
# What goes before makes ready /mnt/input, $output and $code, which lead out of the machine.
RUN = """
exec >$output 2>&1
/bin/sh /mnt/input/run
echo $? >$code
exec systemctl poweroff --no-block
"""
# The journal must be on the disk when it is read there, and whole.
JOURNAL = """\
[Journal]
Storage=persistent
RateLimitIntervalSec=0
SyncIntervalSec=5s
"""

COULD_NOT = 125
TOOK_TOO_LONG = 124


def say(text):
    print(f"{pathlib.Path(sys.argv[0]).name}: {text}", file=sys.stderr, flush=True)


def fail(text):
    say(text)
    sys.exit(COULD_NOT)


def call(*command, **options):
    try:
        return subprocess.run([str(word) for word in command], check=True, **options)
    except FileNotFoundError:
        fail(f"{command[0]} is missing: scripts/setup {pathlib.Path(sys.argv[0]).name}")
    except subprocess.CalledProcessError as error:
        fail(f"{command[0]} failed with {error.returncode}")


def files(name, before_run):
    """The machine's own files, beside its packages'."""
    return {
        "etc/hostname": f"{name}\n",
        "etc/hosts": f"127.0.0.1 localhost {name}\n",
        "etc/systemd/system/machine-run.service": RUNNER,
        "etc/systemd/journald.conf.d/machine.conf": JOURNAL,
        "usr/local/sbin/machine-run": "#!/bin/sh\n" + before_run + RUN,
    }


def make_tree(tree, packages, texts):
    """A tree of files that boots."""
    say("making the machine from Debian's packages, once; this takes some minutes")
    call("mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", f"--include={','.join(packages)}", SUITE, tree)
    for path, text in texts.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)
    (tree / "usr/local/sbin/machine-run").chmod(0o755)
    call("chroot", tree, "systemctl", "--quiet", "enable", "machine-run.service")


def made_once(home, recipe, make):
    """The directory with the machine, which is made if it is not there or was made of something else."""
    digest = hashlib.sha256(repr(recipe).encode()).hexdigest()[:16]
    made = home / f"machine-{digest}"
    if made.is_dir():
        return made
    if os.geteuid() != 0:
        fail("not root: mmdebstrap needs it")
    home.mkdir(parents=True, exist_ok=True)
    for old in home.glob("machine-*"):
        shutil.rmtree(old)
    with tempfile.TemporaryDirectory(dir=home, prefix="new-") as new:
        machine = pathlib.Path(new) / "machine"
        machine.mkdir()
        make(machine)
        os.rename(machine, made)
    return made


def attend(process, output, deadline):
    """Passes on what the command prints, until the machine is down; false if it is not by the deadline."""
    ended = os.pidfd_open(process.pid)
    with selectors.DefaultSelector() as ready:
        ready.register(output, selectors.EVENT_READ)
        ready.register(ended, selectors.EVENT_READ)
        try:
            while True:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                events = [key.fd for key, _ in ready.select(left)]
                if output in events:
                    text = os.read(output, 1 << 16)
                    if not text:
                        ready.unregister(output)
                    sys.stdout.buffer.write(text)
                    sys.stdout.flush()
                elif ended in events:
                    return True
        finally:
            os.close(ended)


def exit_code(file):
    """What the command ended with."""
    try:
        return int(file.read_text())
    except (FileNotFoundError, ValueError):
        say("the machine ended before the command did")
        return COULD_NOT
