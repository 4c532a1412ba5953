"""The stages of gpu_evidence.py, one module each: what a GPU shows of kernels, sensor, denoisers and solvers.

A stage is a function `run(record)` that keeps what it finds in its file as it finds it. Read first: stages.py. The
denoisers' stage is denoiser_table.py (who is measured when), denoiser_worker.py (one configuration in a process of its
own), random_denoiser.py (a model of random weights) and denoisers.py (which models, and in which formats).
"""
