"""Feature extractors, loaded by `registry.load("extractors", NAME)`.

An extractor's module has `load(settings, device)`, which raises DataError where the weights cannot be loaded,
and returns an object with

    image(files) -> float32 [n, d]         features of image files, through clean-fid
    text(prompts) -> float32 [n, d] | None  features of texts, where the extractor reads them
    library, resize, weights_sha256         what to print beside a figure

and, where it classifies,

    classes(features) -> int64 [n]          the class seen in each image
"""
