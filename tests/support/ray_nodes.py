"""
A Ray cluster of several nodes on this machine, in a separate process. It reads the commands `add
CPUS` and `kill` (of the node added last) from the standard input and answers each with a line.
"""

import sys

from ray.cluster_utils import Cluster


def main():
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    added = []
    print(cluster.address, flush=True)
    try:
        for line in sys.stdin:
            command, *arguments = line.split()
            if command == "add":
                added.append(cluster.add_node(num_cpus=int(arguments[0])))
            else:
                cluster.remove_node(added.pop(), allow_graceful=False)
            print("done", flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
