"""Muon for many small matrices: matrices of the same shape are orthogonalised together.

Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/) with the scale of Moonlight
(arXiv:2502.16982), so that it can use AdamW's learning rate. torch.optim.Muon orthogonalises one matrix at a time,
which makes the step of a model this small take half as long again.
"""

from collections import defaultdict

import torch

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(updates: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """Approximations of the nearest semi-orthogonal matrices of a stack [n, rows, columns].

    Computes in bfloat16, or in float32 on a CPU without bfloat16 products, where bfloat16 takes ten times as long.
    """
    a, b, c = NEWTON_SCHULZ
    x = updates.bfloat16() if torch.ops.mkldnn._is_mkldnn_bf16_supported() else updates.float()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """The Muon optimizer: orthogonalised Nesterov momentum; every parameter must be a matrix."""

    def __init__(self, matrices: list[torch.Tensor], lr: float, weight_decay: float, momentum: float = 0.95):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape[matrix.shape].append(matrix)
            for shape, matrices in by_shape.items():
                for matrix in matrices:
                    if "momentum" not in self.state[matrix]:
                        self.state[matrix]["momentum"] = torch.zeros_like(matrix)
                gradients = [matrix.grad for matrix in matrices]
                momenta = [self.state[matrix]["momentum"] for matrix in matrices]
                torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
                ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
                updates = orthogonalise(torch.stack(ahead)).to(matrices[0].dtype)
                scale = 0.2 * max(shape) ** 0.5  # the root mean square of a typical AdamW update
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(matrices, list(updates.unbind()), alpha=-group["lr"] * scale)
