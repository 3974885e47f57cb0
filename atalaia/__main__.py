"""One command for all: `atalaia WORD ...` is `python -m atalaia.WORD ...`."""

import runpy
import sys

WORDS = {
    "train": "train a network through the stages of a config",
    "export": "a finished run to an int8 .tflite, compared with JAX value by value",
    "evaluate": "the same images through every engine",
    "report": "tables of a run, and report.html",
    "codegen": "an int8 .tflite to C",
    "browser": "a page that runs the network on the camera and on photos, without a board",
    "mirror": "an int8 .tflite that also looks at the mirror image: more accuracy, twice the time",
    "pack": "model.atl, the smallest download, and back",
    "label": "faces of a folder of photos to COCO JSON, by a strong detector",
    "search": "Bayesian optimisation over any fields of a config",
    "sweep": "every combination of some fields' values",
}


def main() -> None:
    word = sys.argv[1] if len(sys.argv) > 1 else "help"
    if word in WORDS:
        sys.argv[:2] = [f"atalaia {word}"]
        runpy.run_module(f"atalaia.{word}", run_name="__main__", alter_sys=False)
        return
    print("usage: atalaia WORD [--flag=value ...]; `atalaia WORD --help` says more\n")
    print("\n".join(f"  {name:<10}{what}" for name, what in WORDS.items()))
    if word not in ("help", "-h", "--help"):
        print(f"error: there is no {word!r}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
