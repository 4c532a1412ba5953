"""Record what other libraries compute for the perceptual metrics: tests/peers/perceptual.json.

    python -m venv VENV && VENV/bin/pip install torch==2.13.0 torchvision==0.28.0 lpips==0.1.4 DISTS-pytorch==0.1 \
        pytorch-msssim==1.0.0 flip-evaluator==1.7 prdc==0.2
    VENV/bin/python tests/peers/record_perceptual.py

Networks have the random weights of tests/unit/perceptual_cases.py, and the heads that the libraries ship.
"""

import contextlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "unit"))
import perceptual_cases as cases  # noqa: E402

with contextlib.suppress(ImportError):  # a CPU build of torch beside torchvision for CUDA
    import quantwatt.jobs.torchvision_ops  # noqa: F401


def layers(model):
    """A torchvision network's layers with the random weights."""
    import torchvision

    features = getattr(torchvision.models, model)().features
    shapes = {name: tuple(value.shape) for name, value in features.state_dict().items()}
    features.load_state_dict({name: torch.from_numpy(value) for name, value in cases.weights(shapes).items()})
    return features.eval()


def tensor(image):
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255


def perceptual():
    import DISTS_pytorch.DISTS_pt
    import lpips
    from torchvision import models

    found = {}
    for name, (net, model) in cases.NETWORKS.items():
        reference = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
        of = layers(model).state_dict()
        reference.net.load_state_dict({key: of[key.split(".", 1)[1]] for key in reference.net.state_dict()})
        with torch.no_grad():
            found[name] = [reference(*map(tensor, pair), normalize=True).item() for pair in cases.pairs("small")]
    vgg = SimpleNamespace(features=layers("vgg16"))
    models.vgg16 = lambda pretrained: vgg  # the library would download the trained one
    reference = DISTS_pytorch.DISTS_pt.DISTS(load_weights=False)
    stored = torch.load(Path(sys.modules["DISTS_pytorch"].__file__).parent / "weights.pt", weights_only=True)
    reference.alpha.data, reference.beta.data = stored["alpha"], stored["beta"]
    found["dists"] = [reference(*map(tensor, pair)).item() for pair in cases.pairs("small")]
    return found


def main():
    import flip_evaluator
    import prdc
    import pytorch_msssim

    found = perceptual()
    found["ms-ssim"] = [
        pytorch_msssim.ms_ssim(*(255 * tensor(image) for image in pair)).item() for pair in cases.pairs("large")
    ]
    found["flip"] = [
        float(flip_evaluator.evaluate(*((image / 255).astype(np.float32) for image in pair), "LDR")[1])
        for pair in cases.pairs("small")
    ]
    samples, reference = cases.features()
    manifold = prdc.compute_prdc(reference, samples, nearest_k=3)
    found["image-precision"], found["image-recall"] = float(manifold["precision"]), float(manifold["recall"])
    (HERE / "perceptual.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
