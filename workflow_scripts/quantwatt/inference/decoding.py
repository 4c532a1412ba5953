"""Find an autoencoder that overflows: finite latents that decode to values that are not finite, as float16's do."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from quantwatt.artifacts.errors import DegenerateImages


@contextmanager
def explaining(pipeline: Any) -> Generator[None, None, None]:
    """Context in which a pipeline's degenerate images are refused with the autoencoder as their cause, if it is.

    Raises:
        DegenerateImages: as inside, or of an autoencoder that overflows.
    """
    vae = getattr(pipeline, "vae", None)
    if vae is None or not hasattr(vae, "decode"):
        yield
        return
    overflows, decode, own = [], vae.decode, vars(vae).get("decode")

    def watched(latents, *args, **kwargs):
        decoded = decode(latents, *args, **kwargs)
        pixels = decoded[0] if isinstance(decoded, tuple) else decoded.sample
        if latents.isfinite().all() and not pixels.isfinite().all():
            overflows.append(str(latents.dtype).removeprefix("torch."))
        return decoded

    vae.decode = watched
    try:
        yield
    except DegenerateImages as error:
        if not overflows:
            raise
        instead = "dtype: bfloat16 or float32" if overflows[0] == "float16" else "other formats for the component vae"
        raise DegenerateImages(
            f"the autoencoder ({type(vae).__name__}) overflows in {overflows[0]}: finite latents decode to values that "
            f"are not finite; set {instead}"
        ) from error
    finally:
        if own is None:
            del vae.decode
        else:
            vae.decode = own
