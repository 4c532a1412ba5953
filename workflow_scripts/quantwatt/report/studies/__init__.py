"""Tables in the form of published studies, by name.

Each is a module with

write(folder, results, cells) -> names      writes the study's files into `folder` from those under `results`
"""
