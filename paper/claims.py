"""What all tables of a profile show: `statistics/claims.json`, after everything that tables are made of.

python paper/claims.py --profile quick
"""

import argparse

from lib.study.claims import write_claims
from lib.study.profiles import PROFILES


def main() -> None:
    parser = argparse.ArgumentParser(description="Write what the tables of a profile show.")
    parser.add_argument("--profile", default="quick", choices=PROFILES)
    print(write_claims(parser.parse_args().profile))


if __name__ == "__main__":
    main()
