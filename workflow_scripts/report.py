"""Write the experiment's report: one HTML file with all pictures embedded.

Example:
  python workflow_scripts/report.py --experiment embedded --results results/embedded --grid grid.json \
      --evaluation resources/models/evaluation.json
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from quantwatt.artifacts.manifest import atomic_path, read_json
from quantwatt.jobs import command
from quantwatt.report import cells, tables
from quantwatt.report import page as report_page
from quantwatt.report.page import widths

TEMPLATE = Path(__file__).parents[1] / "resources" / "report" / "page" / "template.html"
BENCHMARKS = Path(__file__).parents[1] / "resources" / "measurements"


def main(argv: Sequence[str] | None = None) -> None:
    """Read the tables, the figures and the cells' JSON, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", required=True, help="name of the experiment, for the title and the commands")
    parser.add_argument("--results", type=Path, required=True, help="the experiment's folder, results/EXPERIMENT")
    parser.add_argument(
        "--grid",
        required=True,
        help="JSON file, - for standard input: cells [{model, method, sampling}], metrics, and the baseline of "
        "the ratios",
    )
    parser.add_argument("--summary", type=Path, help="input (default: RESULTS/tables/summary.csv)")
    parser.add_argument("--layers", type=Path, help="input (default: RESULTS/tables/layers.csv)")
    parser.add_argument("--sensitivity", type=Path, help="input (default: RESULTS/tables/sensitivity.csv)")
    parser.add_argument("--pairs", type=Path, help="input (default: RESULTS/tables/pairs.csv)")
    parser.add_argument("--formats", type=Path, help="input (default: RESULTS/tables/formats.csv)")
    parser.add_argument("--changes", type=Path, help="input (default: RESULTS/tables/changes.csv)")
    parser.add_argument("--recommendation", type=Path, help="input (default: RESULTS/tables/recommendation.json)")
    parser.add_argument("--figures", type=Path, help="folder of the figures (default: RESULTS/figures)")
    parser.add_argument(
        "--evaluation",
        type=Path,
        action="append",
        default=[],
        help="JSON file with an embedded model's recorded quality; repeat the option for other models",
    )
    parser.add_argument(
        "--benchmarks",
        type=Path,
        default=BENCHMARKS,
        help="folder of make bench-kernels' tables (default: %(default)s)",
    )
    parser.add_argument(
        "--protocol",
        type=json.loads,
        help='JSON: the published figures of the experiment\'s protocol, {"source", "differences", "published"}',
    )
    parser.add_argument("--template", type=Path, default=TEMPLATE, help="jinja2 template (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="output (default: RESULTS/report.html)")
    args = parser.parse_args(argv)

    folder, grid = args.results / "tables", cells.read_grid(args.grid)
    is_text = any(cell.get("kind") == "text" for cell in grid["cells"])
    page = report_page.render(
        args.template,
        experiment=args.experiment,
        cells=cells.read_cells(args.results, grid["cells"], grid["metrics"]),
        metrics=grid["metrics"],
        baseline=grid["baseline"],
        summary=tables.read_summary(args.summary or folder / "summary.csv"),
        layers=tables.read_table(args.layers or folder / "layers.csv"),
        sensitivity=tables.read_table(args.sensitivity or folder / "sensitivity.csv"),
        figures=report_page.embed_figures(args.figures or args.results / "figures", images=not is_text),
        pairs=tables.read_table(args.pairs or folder / "pairs.csv"),
        formats=tables.read_table(args.formats or folder / "formats.csv"),
        changes=tables.read_table(args.changes or folder / "changes.csv"),
        results=args.results,
        recommended=read_json(args.recommendation or folder / "recommendation.json"),
        blocks=widths.read(args.benchmarks),
        protocol=args.protocol,
        evaluations={path.stem.removeprefix("evaluation-"): read_json(path) for path in args.evaluation},
    )
    with atomic_path(args.output or args.results / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    command.run(main)
