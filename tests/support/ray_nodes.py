"""
A Ray cluster of several nodes on this machine, in a separate process. It reads the commands `add
CPUS GPUS LABEL` and `kill` (of the node added last) from the standard input and answers each with a
line.
"""

import subprocess
import sys

from ray.cluster_utils import Cluster

from tests.support.shell import PROJECT


class RayNodes:
    """
    The process of the cluster, whose address is `address`, with a head node without CPUs.
    """

    def __init__(self, environment):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.ray_nodes"],
            cwd=PROJECT,
            env=environment | {"RAY_USAGE_STATS_ENABLED": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address = self.process.stdout.readline().strip()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.communicate(timeout=60)

    def add(self, cpus, gpus=0, label="healthy"):
        self._send(f"add {cpus} {gpus} {label}")

    def kill(self):
        self._send("kill")

    def _send(self, command):
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"


def main():
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    added = []
    print(cluster.address, flush=True)
    try:
        for line in sys.stdin:
            command, *arguments = line.split()
            if command == "add":
                cpus, gpus, label = arguments
                options = {"num_cpus": int(cpus), "num_gpus": int(gpus), "labels": {"state": label}}
                added.append(cluster.add_node(**options))
            else:
                cluster.remove_node(added.pop(), allow_graceful=False)
            print("done", flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
