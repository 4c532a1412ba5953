"""What the families of diffusers pipelines have in common."""


def arrays(images):
    """Images [n, channels, height, width] of any type and device as [n, height, width, 3] float32; grey repeats its
    channel.

    Pipelines are asked for tensors and not for arrays, which some make of their own type: numpy has no bfloat16.
    """
    found = images.float().cpu().permute(0, 2, 3, 1).numpy()
    return found.repeat(3, axis=-1) if found.shape[-1] == 1 else found
