"""Feature extractors, loaded by `registry.load("extractors", NAME)`.

An extractor's module has `fetch(settings)`, which makes its weights available on this machine and returns their files,
the first in the folder that holds all of them; what `load` reads beside them is then in the libraries' caches. It has
`load(settings, device)`, which fetches nothing in a job of a rule. Both raise DataError where the weights cannot be had
or loaded. `load` returns an object with

    image(files) -> float32 [n, d]         features of image files, through clean-fid
    text(prompts) -> float32 [n, d] | None  features of texts, where the extractor reads them
    library, resize, weights_sha256         what to print beside a figure

and, where it classifies,

    classes(features) -> int64 [n]          the class seen in each image
"""

from pathlib import Path

NAMES = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")
