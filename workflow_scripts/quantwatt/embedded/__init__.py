"""How the embedded models are trained: one module for each model, one for the loop they share."""
