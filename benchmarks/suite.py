"""All benchmarks that train, one after the other.

python -m benchmarks.suite [--quick] [--processes 2]
"""

import argparse

from benchmarks import agents_by_rewards, dpok_claims, reward_hacking

BENCHMARKS = (dpok_claims.BENCHMARK, agents_by_rewards.BENCHMARK, reward_hacking.BENCHMARK)


def main() -> None:
    """Run them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small part of the work, to see that it runs")
    parser.add_argument("--processes", type=int, default=2, help="trainings at once, one thread each")
    given = parser.parse_args()
    for benchmark in BENCHMARKS:
        benchmark.run(quick=given.quick, processes=given.processes)


if __name__ == "__main__":
    main()
