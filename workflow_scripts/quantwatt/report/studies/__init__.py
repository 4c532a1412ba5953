"""Tables in the format of published studies, one module per study.

A module has

write(folder, results, cells) -> names      write the study's files into `folder`, from the files under `results`
"""
