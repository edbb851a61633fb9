"""The three sessions from the terminal: train a network, test it, classify images with it.

.venv/bin/python main.py session9                       train as session9_assignment.ipynb does
.venv/bin/python main.py evaluate --checkpoint FILE     test accuracy of a trained network
.venv/bin/python main.py classify horse.png             the classes that a trained network predicts
.venv/bin/python main.py runs                           what has been trained here
"""

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from utils.errors import DataError, one_line_errors
from utils.recipes import PRECISIONS, SESSION7, SESSION8, SESSION9

WEIGHTS = Path(__file__).parent / "static/session9/weights.pt"


class OneLineParser(argparse.ArgumentParser):
    """Reports an error in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (`{self.prog} --help` explains)\n")


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="main.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    common = OneLineParser(add_help=False)
    common.add_argument(
        "--data", help="cifar10, digits, auto or a folder of images; default: $DATA, else auto"
    )
    common.add_argument(
        "--device", choices=("auto", "cpu"), default="auto", help="auto: the GPU if there is one"
    )
    for recipe in (SESSION9, SESSION8, SESSION7):
        add_train_command(commands, common, recipe)
    evaluate = commands.add_parser(
        "evaluate", parents=[common], help="test accuracy of a trained network"
    )
    evaluate.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        metavar="FILE",
        help="weights.pt of a run's folder",
    )
    classify = commands.add_parser("classify", help="classify images with a trained network")
    classify.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    classify.add_argument(
        "--checkpoint", type=Path, default=WEIGHTS, metavar="FILE", help="default: session 9's"
    )
    commands.add_parser("runs", help="list the runs in the folder runs/")
    arguments, unknown = parser.parse_known_args(words)
    if unknown:  # an error of the command, so that the message names its help
        message = f"unrecognized arguments: {' '.join(unknown)}"
        commands.choices[arguments.command].error(message)
    return arguments


def add_train_command(commands, common: argparse.ArgumentParser, recipe) -> None:
    """The command that trains one session; its options are the recipe's fields."""
    name = f"session{recipe.session}"
    train = commands.add_parser(
        name,
        parents=[common],
        help=f"train as {name}_assignment.ipynb does",
        description=f"Train as {name}_assignment.ipynb does. Log, weights and pictures go to "
        f"runs/{name}/. An interrupted run resumes when the same command is run again.",
    )
    train.add_argument("--name", default=name, help=f"of the folder in runs/; default: {name}")
    train.add_argument("--epochs", type=int, help=f"default: {recipe.epochs}")
    train.add_argument(
        "--batch-size", type=int, help=f"images per step; default: {recipe.batch_size}"
    )
    train.add_argument(
        "--max-lr", type=float, help="maximum learning rate; default: the LR finder's"
    )
    train.add_argument("--seed", type=int, help="random seed (default: 0)")
    train.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="auto: bfloat16 or float16 where the hardware computes in it; "
        "a resumed run keeps its precision",
    )


def train(arguments: argparse.Namespace) -> None:
    from utils.data import load_data
    from utils.recipes import check_range
    from utils.runs.run import Run
    from utils.sessions import SESSIONS, show_results, train_session

    session = SESSIONS[int(arguments.command.removeprefix("session"))]
    names = ("epochs", "batch_size", "seed", "precision")
    given = {name: getattr(arguments, name) for name in names}
    changes = {name: value for name, value in given.items() if value is not None}
    recipe = session.recipe.replace(**changes)
    if arguments.max_lr is not None:
        check_range("max LR", arguments.max_lr, 1e-9, 1e6)
    data = load_data(arguments.data)
    run = Run.open(arguments.name, recipe, data, cpu=arguments.device == "cpu")
    train_session(session, run, arguments.max_lr)
    show_results(session, run)
    run.finish()
    print(run.submission(), flush=True)
    run.download()


def evaluate(arguments: argparse.Namespace) -> None:
    from utils.classify import Classifier
    from utils.data import load_data, make_test_loader
    from utils.device import choose_device, fast_precision, hardware_of, memory_format
    from utils.settings import data_source
    from utils.training import test

    classify = Classifier(arguments.checkpoint)
    source = data_source() if arguments.data is None else arguments.data
    data = load_data("cifar10" if source == "auto" else source)  # digits would be no substitute
    if classify.classes != data.classes:
        raise DataError(
            f"{arguments.checkpoint} was not trained on the classes of {data.name}: "
            f"use --data to give images of {', '.join(classify.classes)}."
        )
    device = choose_device(cpu=arguments.device == "cpu")
    precision = fast_precision(device)
    loader = make_test_loader(data, classify.normalize, 512, device)
    model = classify.model.to(device).to(memory_format=memory_format(device))
    print(data)
    print(hardware_of(device, precision), flush=True)
    _, _, line = test(model, loader, precision)
    print(line)


def classify(arguments: argparse.Namespace) -> None:
    from utils.classify import Classifier

    classifier = Classifier(arguments.checkpoint)
    for image in arguments.images:
        probabilities = classifier(image)
        words = [f"{name} {100 * value:.1f}%" for name, value in probabilities.items()]
        print(f"{image}: {', '.join(words)}")


def runs(arguments: argparse.Namespace) -> None:
    from utils.runs.report import list_runs
    from utils.settings import run_folder

    print(list_runs(run_folder("x").parent))


def main(words: list[str] | None = None) -> None:
    """Run the command line; ``words`` are its arguments, for calls from a notebook."""
    arguments = parse(words)
    commands = {"evaluate": evaluate, "classify": classify, "runs": runs}
    command = commands.get(arguments.command, train)
    with one_line_errors("main.py"):
        try:
            command(arguments)
        except KeyboardInterrupt:
            promise = " All finished epochs are saved: run the same command again to resume."
            sys.exit("\nStopped." + (promise if command is train else ""))
        except ModuleNotFoundError as error:
            sys.exit(
                f"main.py: {error.name} is not installed here: use .venv/bin/python, which "
                "`make test` creates, or `make clean test` anew if its Python has changed."
            )


if __name__ == "__main__":
    # The pictures are files; a backend for windows, as the user may have set it, may be missing.
    os.environ["MPLBACKEND"] = "agg"
    # Clusters send SIGTERM; it is handled like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main()
