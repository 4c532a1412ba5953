# gptqmodel 7.7.0 asks for torch 2.14.1; its GPTQ class runs under 2.13.0.
pip install --no-deps gptqmodel==7.7.0
