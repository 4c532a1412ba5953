"""Model families: how a kind of pipeline is loaded, run and taken apart.

A family module offers

    load(settings, location, denoiser=None) -> pipeline         diffusers pipeline on the CPU
    load_denoiser(settings, location) -> module                 the part that is quantized
    meta_denoiser(location) -> module                           its architecture, without memory
    generate(pipeline, prompts, seeds, sampling) -> images      float32 [n, height, width, 3] in 0..1
    prepare(pipeline, prompts, seeds, sampling) -> run()        one batch, whatever it needs on the device already
    phases(pipeline, prompts, seeds, sampling) -> {name: run()} its parts, in order, each by itself
    record(pipeline, prompts, seeds, calibration, steps) -> {step: denoiser inputs}
    blocks(denoiser) -> list of names                           in execution order
    quantizable(denoiser) -> list of names                      linear layers, in execution order
    segments(denoiser) -> {layer: chunks}                       layers whose outputs are cut into chunks of equal size
    stages(names) -> list of lists of names                     one block's layers; each list reads what is before it
    advance(inputs, output) -> inputs                           one block's inputs from the output of the one before
"""

from quantwatt import registry


def load_family(name):
    """The family module of a model entry's `family`."""
    return registry.load("families", name)
