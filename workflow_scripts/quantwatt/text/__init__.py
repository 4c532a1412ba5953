"""What text models share: their files of texts, their pipeline, the layers of their blocks, their predictions."""
