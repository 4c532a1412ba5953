"""The dtypes that models compute in, as settings and manifests name them."""

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}  # bytes per value
