"""The README's table on CIFAR-10: one run of configs/cifar10.py, its int8 model and every engine's figures.

python experiments/cifar10.py        # trains runs/cifar10 if it is not there, then publishes it

Writes experiments/results/cifar10/ (model.tflite, evaluation.json, ledger.json, config.json, table.md, confusion.png)
and the table in README.md. Nothing is typed by hand.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from atalaia import report  # noqa: E402

WORKDIR = ROOT / "runs/cifar10"
RESULTS = ROOT / "experiments/results/cifar10"


def main() -> None:
    if not (WORKDIR / "summary.md").is_file():
        subprocess.run([ROOT / "run.sh", "cifar10"], check=True)
    text = report.publish(WORKDIR, RESULTS)
    report.insert(ROOT / "README.md", "cifar10", text)
    print(f"{text}\nwritten: {RESULTS}, README.md")


if __name__ == "__main__":
    main()
