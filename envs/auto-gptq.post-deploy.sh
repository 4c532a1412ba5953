# Built from source without its CUDA kernels, which solving does not use; its build reads the torch that is installed.
BUILD_CUDA_EXT=0 pip install --no-build-isolation --no-deps auto-gptq==0.7.1
