"""Run a command with a RabbitMQ node of its own as Celery's broker: `python tests/support/rabbitmq.py pytest …`.

Needs Debian's package `rabbitmq-server`; without it, says so and ends well. The node listens on the loopback address,
keeps its data in a new directory, and runs as the package's user where this process is root's.
"""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from waiting import PATIENCE

SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
STARTING_SECONDS = 100


def main(command: list[str]) -> int:
    """Run *command*, and return its exit code."""
    if not SERVER.exists():
        print("skipped: there is no rabbitmq-server (apt-get install rabbitmq-server)")  # noqa: T201
        return 0
    directory = Path(tempfile.mkdtemp(prefix="mailglass-rabbitmq-"))
    port, distribution, names = free_ports(3)
    user = None
    if os.geteuid() == 0:
        user = pwd.getpwnam("rabbitmq").pw_uid
        os.chown(directory, user, -1)
    (directory / "rabbitmq.conf").write_text(f"listeners.tcp.1 = 127.0.0.1:{port}\n")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(names),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "plugins"),
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_LOG_BASE": str(directory),
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_MNESIA_BASE": str(directory),
        "RABBITMQ_NODENAME": f"mailglass{os.getpid()}@localhost",
    }
    log = directory / "log"
    with log.open("wb") as output:
        node = subprocess.Popen(
            [str(SERVER)],
            env=environment,
            user=user,
            cwd=directory,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
        )
    try:
        deadline = time.monotonic() + STARTING_SECONDS
        while not answers(port):
            if node.poll() is not None or time.monotonic() > deadline:
                print(log.read_text()[-3000:], "\nthe node did not start", file=sys.stderr)  # noqa: T201
                return 1
            time.sleep(0.2)
        broker = {"MAILGLASS_TEST_BROKER_URL": f"amqp://guest:guest@127.0.0.1:{port}//"}
        return subprocess.run(command, env={**os.environ, **broker}, check=False).returncode
    finally:
        node.terminate()
        try:
            node.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            node.kill()
            node.wait()
        subprocess.run(["epmd", "-port", str(names), "-kill"], check=False, capture_output=True)
        shutil.rmtree(directory, ignore_errors=True)


def free_ports(number: int) -> list[int]:
    """Return free ports of the loopback address."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [free_socket.getsockname()[1] for free_socket in sockets]
    for free_socket in sockets:
        free_socket.close()
    return ports


def answers(port: int) -> bool:
    """Return True if an AMQP server answers on the port."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as server:
            server.sendall(b"AMQP\0\0\x09\x01")
            return bool(server.recv(8))
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
