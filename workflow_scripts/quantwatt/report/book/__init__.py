"""Bundles of finished results, and the book that many bundles make.

A bundle is one ZIP file of at most MOST_BYTES that holds what a result says and nothing of its weights. ZIP, because
its directory tells the name and the size of every entry before one of them is unpacked, each entry can be read alone,
and any system opens it without this program; a tar archive has to be unpacked to be listed and may hold links and
devices, and one JSON file has to be read whole and stores pictures a third larger.

    manifest.json                what it is: FORMAT, VERSION, experiment, date, and size and sha256 of every other entry
    configuration.json           models, methods, samplings, metrics and prompts, as they were used
    provenance.json              commits, versions, processors and devices
    hashes.json                  sha256 of the results' files that it was made of, and of the models' files
    tables/summary.csv, layers.csv, recommendation.json
    cells/NNNN/measurement.json  of row NNNN of the summary, without what is large
    cells/NNNN/power.csv         its power, down-sampled
    cells/NNNN/image-N.png       small images, the same prompts for all methods

A bundle is data from strangers. `archive` opens it, `parsing` reads JSON and CSV, `reading` checks what they say; the
page (`page`), labels (`label`) and snippets (`model_card`) know only what these have let through.
"""

FORMAT, VERSION = "quantwatt-bundle", 1
MOST_BYTES = 5_000_000
MOST_CELLS = 1_000
MOST_IMAGES = 4  # of a method
LARGEST_SIDE = 256  # of an image, in pixels
