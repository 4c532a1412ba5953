r"""Measure a model's ratios for MagCache, and print them as one line of YAML: `ratios` of a method's cache.

Example:
  python workflow_scripts/tools/mag_ratios.py --checkpoint results/embedded/checkpoints/tiny-sd3/float32 \
      --prompts resources/prompts/shapes-calibration.txt --steps 20 --guidance 3
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder with quantwatt

from quantwatt.artifacts.errors import Unsupported
from quantwatt.jobs import command, gpus


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="folder or manifest.json, of a method without a cache")
    parser.add_argument("--prompts", required=True, help="file of prompts: images of the first ones are drawn")
    parser.add_argument("--images", type=int, default=4, help="number of them (default: 4)")
    parser.add_argument("--steps", type=int, required=True, help="as in the sampling")
    parser.add_argument("--guidance", type=float, help="as in the sampling")
    parser.add_argument("--height", type=int, help="pixels (default: the model's)")
    parser.add_argument("--width", type=int, help="pixels (default: the model's)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    args = parser.parse_args(argv)
    gpus.claim(args.device)

    from quantwatt.data import prompts
    from quantwatt.inference import checkpoint
    from quantwatt.inference.caches import mag
    from quantwatt.models.sampling import Drawing

    pipeline = checkpoint.load_pipeline(args.checkpoint, args.device, simulate=True)
    denoiser = pipeline.family.denoiser(pipeline.pipeline)
    if reason := mag.refusal(denoiser, {}):
        raise Unsupported(f"{args.checkpoint}: {type(denoiser).__name__} {reason}.")
    texts = prompts.first(args.prompts, args.images, cycle=True)
    drawing = Drawing(steps=args.steps, guidance=args.guidance, height=args.height, width=args.width)
    ratios = mag.ratios(denoiser, lambda: pipeline.generate(texts, range(len(texts)), drawing), args.steps)
    print(f"ratios: [{', '.join(f'{ratio:.4g}' for ratio in ratios)}]")


if __name__ == "__main__":
    command.run(main)
