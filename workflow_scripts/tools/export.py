"""Export a quantized checkpoint in the format of another library: GPTQ, bitsandbytes, torchao or GGUF."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder with quantwatt

from quantwatt.jobs import command

FORMS = ("gptq", "gptq-v2", "bitsandbytes", "torchao", "gguf")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="the checkpoint's folder or its manifest.json")
    parser.add_argument("--form", required=True, choices=FORMS)
    parser.add_argument("--output", required=True, help="folder to create; an existing folder must be empty")
    args = parser.parse_args(argv)

    from quantwatt.inference.exports import export

    export(args.checkpoint, args.form, args.output)


if __name__ == "__main__":
    command.run(main)
