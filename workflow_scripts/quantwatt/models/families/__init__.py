"""Model families: how a kind of pipeline is loaded, run and taken apart.

A family module offers

    load(settings, location, denoiser=None) -> pipeline         diffusers pipeline on the CPU
    load_denoiser(settings, location) -> module                 the part that is quantized
    meta_denoiser(location) -> module                           its architecture, without memory
    generate(pipeline, prompts, seeds, sampling) -> images      float32 [n, height, width, 3] in 0..1
    prepare(pipeline, prompts, seeds, sampling) -> run()        one batch, whatever it needs on the device already
    phases(pipeline, prompts, seeds, sampling) -> {name: run()} its parts, in order, each by itself
    record(pipeline, prompts, seeds, calibration, steps) -> {step: denoiser inputs}, as `recording.record` makes it
    blocks(denoiser) -> list of names                           what is quantized one after another
    quantizable(denoiser) -> list of names                      linear layers and convolutions, each in one block
    segments(denoiser) -> {layer: chunks}                       layers whose outputs are cut into chunks of equal size

and, where it has or knows them,

    DEFAULTS = {...}                                            of a sampling: steps, guidance
    stages(names) -> list of lists of names                     one block's layers; each list reads what is before it
    skips(denoiser) -> {layer: channels of each part}           convolutions that read a skip connection beside their
                                                                block's input
    first_token(denoiser) -> list of names                      layers whose input's first token is the same for all
                                                                prompts
    content(denoiser) -> list of names                          layers that decide on what is in a picture, not on how
                                                                well it is drawn (MixDQ)

`quantwatt.models.architecture` finds blocks and layers of networks that nothing else is known of; beside the families,
`pipelines`, `recording` and `effects` have what those of diffusers pipelines do alike.

A family of text models (its schema says "x-kind": "text") has the same but for generate and record, and in their place

    read(path) -> (texts, labels or None)                       a file of texts, as the family takes them
    PHASES_APART = (...)                                phases that are no part of `prepare`'s run, if there are any
    record(pipeline, texts, calibration) -> {network input: [samples, ...]}
    predict(pipeline, texts, settings) -> items                 one mapping per sentence or window
    batches(pipeline, texts, settings, size, count) -> list     the first `count` batches of `size` items
    prepare(pipeline, batch, seeds, settings) -> run()          one batch, its data on the device beforehand
    phases(pipeline, batch, seeds, settings) -> {phase: run()}
    work(pipeline, batch, settings) -> {"items", "tokens", "padded_tokens"}     what one run does
    real_tokens(inputs) -> bool [samples, tokens]               where samples are padded; else it is missing
    transposed(location) -> set of names                        layers that its library stores as [in, out], if any
"""

from quantwatt import registry


def load_family(name):
    """The family module of a model entry's `family`."""
    return registry.load("families", name)
