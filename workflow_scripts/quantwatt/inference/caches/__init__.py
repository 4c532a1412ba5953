"""Caches of a denoiser: diffusers' hooks, which give the outputs of an earlier step again instead of computing them.

The module of a cache offers

    UNIT                                what it skips, in the plural
    APART                               whether it keeps the branches of guidance apart if they are computed in turns
    refusal(denoiser, settings)         why it does not work with this denoiser, or None
    apply(denoiser, settings, place)    puts diffusers' hooks on the denoiser; `place`: of the drawing, `drawing.Place`

with `settings` the method's completed entry. quantwatt.inference.drawing does what all have in common.
"""
