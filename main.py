"""The three sessions from the terminal: train a network, test it, classify images with it.

.venv/bin/python main.py session9                       train as session9_assignment.ipynb does
.venv/bin/python main.py evaluate --checkpoint FILE     test accuracy of a trained network
.venv/bin/python main.py classify horse.png             the classes that a trained network predicts
"""

import argparse
import signal
import sys
from pathlib import Path
from typing import NoReturn

from utils.recipes import SESSION7, SESSION8, SESSION9
from utils.system.errors import DataError, one_line_errors

WEIGHTS = Path(__file__).parent / "static/session9/weights.pt"


class OneLineParser(argparse.ArgumentParser):
    """Reports an error in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (`{self.prog} --help` explains)\n")


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(prog="main.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    common = OneLineParser(add_help=False)
    common.add_argument("--data", help="cifar10, digits, auto, a folder or an archive; default: $DATA, else auto")
    common.add_argument("--device", choices=("auto", "cpu"), default="auto", help="auto: the GPU if there is one")
    for recipe in (SESSION7, SESSION8, SESSION9):
        about = f"Train {recipe.title} as its notebook does. Log, weights and pictures go to runs/{recipe.name}/. " \
            "An interrupted run resumes when the same command is run again."  # fmt: skip
        train = commands.add_parser(recipe.name, parents=[common], help=f"train {recipe.title}", description=about)
        train.add_argument("--epochs", type=int, help=f"default: {recipe.epochs}")
        train.add_argument("--batch-size", type=int, help=f"images per step; default: {recipe.batch_size}")
        train.add_argument("--max-lr", type=float, help="maximum learning rate; default: the LR finder's")
        train.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
        chosen = "auto: bfloat16 or float16 where the hardware computes in it; a resumed run keeps its precision"
        train.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto", help=chosen)
        train.add_argument("--tensorboard", action="store_true", help="log to TensorBoard (tensorboard --logdir runs)")
    evaluate = commands.add_parser("evaluate", parents=[common], help="test accuracy of a trained network")
    evaluate.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="weights.pt of a run's folder")
    classify = commands.add_parser("classify", help="classify images with a trained network")
    classify.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    classify.add_argument("--checkpoint", type=Path, default=WEIGHTS, metavar="FILE", help="default: session 9's")
    arguments, unknown = parser.parse_known_args(words)
    if unknown:  # an error of the command, so that the message names its help
        commands.choices[arguments.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    return arguments


def train(arguments: argparse.Namespace) -> None:
    from utils.data import load_data
    from utils.runs.run import Run
    from utils.sessions import SESSIONS
    from utils.system.device import join_processes

    session, cpu = SESSIONS[int(arguments.command.removeprefix("session"))], arguments.device == "cpu"
    with join_processes(cpu).local_main_process_first():  # it downloads and decodes
        data = load_data(arguments.data)
    names = "epochs", "batch_size", "seed", "precision", "tensorboard"
    changes = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    run = Run.open(session, data, arguments.max_lr, cpu=cpu, **changes)
    max_lr = arguments.max_lr
    if max_lr is None:
        search = run.find_lr()
        run.accelerator.print(search, flush=True)
        max_lr = search.suggestion
    run.fit(max_lr)
    if run.accelerator.is_main_process:
        run.show(*(name for name in session.pictures if name != "lr_finder_plot" or run.search))
        run.finish()
        run.submission()
        print(f"Log, weights, pictures and submission.md (what the assignment page asks for): {run.folder}/")
    else:  # as finish() does: PyTorch sometimes aborts a process that exits before it has left its group
        run.accelerator.end_training()


def evaluate(arguments: argparse.Namespace) -> None:
    from utils.classify import Classifier
    from utils.data import load_data, make_test_loader
    from utils.system.device import make_accelerator
    from utils.system.settings import data_source
    from utils.training import test

    source = arguments.data or data_source()
    accelerator = make_accelerator(cpu=arguments.device == "cpu")
    with accelerator.local_main_process_first():
        data = load_data("cifar10" if source == "auto" else source)  # the digits would be no substitute
    classify = Classifier(arguments.checkpoint)
    if classify.classes != data.classes:
        remedy = f"use --data to give images of {', '.join(classify.classes)}"
        raise DataError(f"{arguments.checkpoint} was not trained on the classes of {data.name}: {remedy}.")
    batch_size = 512 - 512 % accelerator.num_processes  # they share a batch equally
    loader = make_test_loader(data, classify.normalize, batch_size, accelerator.device)
    accelerator.print(data)
    model, loader = accelerator.prepare(classify.model, loader)
    accelerator.print(test(model, loader, accelerator)[-1])
    accelerator.end_training()


def classify(arguments: argparse.Namespace) -> None:
    from utils.classify import Classifier

    classifier = Classifier(arguments.checkpoint)
    for image in arguments.images:
        answers = classifier(image)
        print(f"{image}: {', '.join(f'{name} {100 * probability:.1f}%' for name, probability in answers.items())}")


def main(words: list[str] | None = None) -> None:
    """Run the command line; ``words`` are its arguments, for calls from a notebook."""
    arguments = parse(words)
    command = {"evaluate": evaluate, "classify": classify}.get(arguments.command, train)
    with one_line_errors("main.py"):
        try:
            command(arguments)
        except KeyboardInterrupt:
            kept = " All finished epochs are saved: run the same command again to resume." if command is train else ""
            sys.exit(f"\nStopped.{kept}")
        except ModuleNotFoundError as error:
            sys.exit(f"main.py: {error.name} is not installed here: use .venv/bin/python, which `make test` creates.")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clusters send it; it is handled like Ctrl-C
    main()
